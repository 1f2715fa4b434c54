-- Take a request that is done off the queue and off the pending list.
--
-- KEYS  requests, order, lease, spoken
-- ARGV  group, entry, model, request
-- Returns 1 when it was there, 0 when it was not, -1 when it was not answered, or a failover has forgotten the answer.
--
-- lease, spoken: the session's, only where the answer is to be checked.
if KEYS[3] then
  local held = redis.call('HMGET', KEYS[3], 'active', 'entry', 'model')
  if held[1] == '1' and held[2] == ARGV[2] and held[3] == ARGV[3] then return -1 end
  if not redis.call('ZSCORE', KEYS[4], ARGV[4]) then return -1 end
end
local item = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])[1]
if item then
  local session, name = whose(item)
  if session then redis.call('ZREM', KEYS[2], session .. ' ' .. item[1] .. ' ' .. name) end
end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
return redis.call('XDEL', KEYS[1], ARGV[2])
