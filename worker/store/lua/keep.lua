-- Become the backlog's keeper, or stay it, or stop being it.
--
-- KEYS  keeper
-- ARGV  worker, ttl_ms
-- Returns 1 when the worker is the keeper now.
--
-- ttl_ms: 0: stop.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'string' and kind ~= 'none' then redis.call('DEL', KEYS[1]) end
local keeper = redis.call('GET', KEYS[1])
if keeper and keeper ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
