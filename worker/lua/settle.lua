-- A request is done: off the pending list and off the queue, as one.
--
-- KEYS  requests, order
-- ARGV  group, entry
local item = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])[1]
if item then
  local session, name = whose(item)
  if session then redis.call('ZREM', KEYS[2], session .. ' ' .. item[1] .. ' ' .. name) end
end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
return redis.call('XDEL', KEYS[1], ARGV[2])
