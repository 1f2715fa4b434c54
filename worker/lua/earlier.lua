-- The requests of the same session that stand before this one in its queue, newest first.
--
-- Finished entries are deleted, so the stream itself is the order of what is left.
--
-- KEYS  requests
-- ARGV  entry, session
-- Returns their names.
local before, names = '(' .. ARGV[1], {}
while true do
  local page = redis.call('XREVRANGE', KEYS[1], before, '-', 'COUNT', 64)
  for _, item in ipairs(page) do
    local fields, session, name = item[2], nil, item[1]
    for i = 1, #fields, 2 do
      if fields[i] == 'session' then session = fields[i + 1] end
      if fields[i] == 'request' then name = fields[i + 1] end
    end
    -- An invalid name is none: that turn goes by its entry's id.
    if not string.match(name, '^[%w_.:-]+$') or #name > 128 then name = item[1] end
    if session == ARGV[2] then names[#names + 1] = name end
  end
  if #page < 64 then return names end
  before = '(' .. page[#page][1]
end
