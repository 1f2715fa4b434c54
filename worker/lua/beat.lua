-- A worker's heartbeat, in server time.
--
-- KEYS  worker
-- ARGV  instance, ttl_ms, fields...
-- Returns the server's unix ms, or nothing when a living worker of another instance has this name.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', KEYS[1]) end
local instance = redis.call('HGET', KEYS[1], 'instance')
if instance and instance ~= ARGV[1] then return false end
local now = redis.call('TIME')
local now_ms = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000))
-- Replaced, not merged: what the worker no longer says must go.
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'instance', ARGV[1], 'beat_ms', now_ms, unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return now_ms
