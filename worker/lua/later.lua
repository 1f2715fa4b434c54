-- Does a request of this name stand after mine in the queue? Says what ``stop:<request>`` covers.
--
-- KEYS  requests
-- ARGV  entry, session, request
local after = '(' .. ARGV[1]
while true do
  local page = redis.call('XRANGE', KEYS[1], after, '+', 'COUNT', 64)
  for _, item in ipairs(page) do
    local session, name = whose(item)
    if session == ARGV[2] and name == ARGV[3] then return 1 end
  end
  if #page < 64 then return 0 end
  after = '(' .. page[#page][1]
end
