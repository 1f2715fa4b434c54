-- Give up an owner's turn that will never end, or its place among those that wait.
--
-- KEYS  lease
-- ARGV  entry, model, owner ("": given up before)
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then return 0 end
redis.call('HDEL', KEYS[1], 'w:' .. ARGV[1] .. ':' .. ARGV[2])
local held = redis.call('HMGET', KEYS[1], 'active', 'entry', 'model', 'owner')
if held[1] ~= '1' or held[2] ~= ARGV[1] or held[3] ~= ARGV[2] or (held[4] or '') ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], 'active', '0')
redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('HDEL', KEYS[1], 'resume', 'owner')
return 1
