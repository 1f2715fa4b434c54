-- Hand requests back: any worker with a free slot may take them, and idle ones are woken.
--
-- KEYS  requests, wake
-- ARGV  group, orphans, owner, entries...
-- Returns how many were handed back.
--
-- entries: none: all that the owner has, and the owner is removed from the group.
local group, orphans, owner = ARGV[1], ARGV[2], ARGV[3]
local moved = 0

local function move(ids)
  -- With JUSTID, so that handing back does not count as a delivery.
  moved = moved + #redis.call('XCLAIM', KEYS[1], group, orphans, 0, unpack(ids))
end

if #ARGV > 3 then
  local ids = {unpack(ARGV, 4)}
  -- Only those that are still the owner's: another worker may have taken one meanwhile.
  local mine = {}
  for _, id in ipairs(ids) do
    local found = redis.call('XPENDING', KEYS[1], group, id, id, 1, owner)
    if #found > 0 then mine[#mine + 1] = id end
  end
  if #mine > 0 then
    mine[#mine + 1] = 'JUSTID'
    move(mine)
  end
else
  while true do
    local page = redis.call('XPENDING', KEYS[1], group, '-', '+', 100, owner)
    if #page == 0 then break end
    local ids = {}
    for i, item in ipairs(page) do ids[i] = item[1] end
    ids[#ids + 1] = 'JUSTID'
    move(ids)
  end
  redis.call('XGROUP', 'DELCONSUMER', KEYS[1], group, owner)
end

if moved > 0 then
  local now = redis.call('TIME')
  redis.call('SET', KEYS[2], now[1] .. '.' .. now[2], 'PX', 60000)
end
return moved
