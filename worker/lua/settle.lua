-- A request is done: off the pending list and off the queue, as one.
--
-- KEYS  requests, order, and the session's lease where it is on the same server
-- ARGV  group, entry, model
-- Returns 1 when it was there, 0 when it was not, -1 when its turn is not over: a failover has forgotten the end.
if KEYS[3] and redis.call('TYPE', KEYS[3]).ok == 'hash' then
  local held = redis.call('HMGET', KEYS[3], 'active', 'entry', 'model')
  if held[1] == '1' and held[2] == ARGV[2] and held[3] == ARGV[3] then return -1 end
end
local item = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])[1]
if item then
  local session, name = whose(item)
  if session then redis.call('ZREM', KEYS[2], session .. ' ' .. item[1] .. ' ' .. name) end
end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
return redis.call('XDEL', KEYS[1], ARGV[2])
