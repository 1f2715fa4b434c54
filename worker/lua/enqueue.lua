-- Let a request wait for its session.
--
-- KEYS  lease, session, spoken, refused
-- ARGV  request, entry, model, "1" when it interrupts, ttl_ms, how many may wait
-- Returns how many wait before it, -1 when its name was taken before, -2 when too many wait (it will be answered so),
-- -3 when another worker speaks this entry.
local lease, session, spoken, refused = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local request, entry, model, most = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[6])
for key, kind in pairs({[lease] = 'hash', [session] = 'hash', [spoken] = 'zset', [refused] = 'list'}) do
  local found = redis.call('TYPE', key).ok
  if found ~= kind and found ~= 'none' then redis.call('DEL', key) end
end

local waiter = 'w:' .. entry .. ':' .. model
local held = redis.call('HMGET', lease, 'active', 'entry', 'model', 'turn', waiter, 'request')
local is_spoken = held[1] == '1' and held[6] == request
if held[1] == '1' and held[2] == entry and held[3] == model then return -3 end
if redis.call('ZSCORE', spoken, request) and not is_spoken then
  leave(lease, session, waiter)
  return -1
end

local before, interrupts = 0, ARGV[4] == '1' and not is_spoken
local fields = redis.call('HGETALL', lease)
for i = 1, #fields, 2 do
  local other = string.match(fields[i], '^w:(%d+%-%d+):')
  if other and is_before(other, entry) then
    before = before + 1
    -- Asked for a second time, it has interrupted already: not itself, nor what was added since.
    if string.sub(fields[i + 1], 2) == request then interrupts = false end
  end
end
if before >= most and is_spoken then return -1 end
if before >= most and not held[5] then
  redis.call('ZADD', spoken, whole(held[4]), request)
  if redis.call('LLEN', refused) < MOST_REFUSED then
    redis.call('RPUSH', refused, entry .. ' ' .. request .. ' max_waiting_turns: ' .. most ..
      ' requests wait in this session')
  end
  for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[5]) end
  return -2
end
redis.call('HSET', lease, waiter, (interrupts and '!' or '.') .. request)
if held[1] ~= '1' then redis.call('HSET', session, 'state', 'queued') end
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[5]) end
return before
