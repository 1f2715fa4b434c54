-- Give up an owner's turn that will never end, or its place among those that wait.
--
-- KEYS  lease
-- ARGV  entry, model, owner
-- Returns 1 when the turn was given up.
--
-- owner is the worker that holds the lease; empty where it gave the turn up before.
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then return 0 end
redis.call('HDEL', KEYS[1], 'w:' .. ARGV[1] .. ':' .. ARGV[2])
local held = redis.call('HMGET', KEYS[1], 'active', 'entry', 'model', 'owner')
for i = 1, 3 do
  if (held[i + 1] or '') ~= ARGV[i] then return 0 end
end
if held[1] ~= '1' then return 0 end
redis.call('HSET', KEYS[1], 'active', '0')
redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('HDEL', KEYS[1], 'resume', 'owner')
return 1
