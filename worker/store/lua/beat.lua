-- Renew a worker's record in server time.
--
-- KEYS  record
-- ARGV  instance, ttl_ms, living_ms, merges, fields...
-- Returns the server's unix ms, or nothing when a living worker of another instance has this name.
--
-- living_ms: another instance whose record is older is dead. merges: "1" when the record has the same fields as before.
local now = redis.call('TIME')
local now_ms = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000))
local held = redis.pcall('HMGET', KEYS[1], 'instance', 'beat_ms')
if held.err then
  redis.call('DEL', KEYS[1])
  held = {false, false}
end
local same = held[1] == ARGV[1]
if held[1] and not same and now_ms - (tonumber(held[2] or '') or 0) < tonumber(ARGV[3]) then return false end
-- Replace the record, so that fields which the worker no longer reports are gone.
if held[1] and not (same and ARGV[4] == '1') then redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], 'instance', ARGV[1], 'beat_ms', now_ms, unpack(ARGV, 5))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return now_ms
