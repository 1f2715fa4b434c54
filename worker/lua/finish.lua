-- End the turn that holds the lease: its end entry and the session's new state, as one.
--
-- KEYS  lease, audio, session, spoken, text
-- ARGV  epoch, turn, n of the end entry, ttl_ms, "1" when the turn has a text stream, count of entries to
--       keep, end fields...
-- Returns n when the end stands, the turn's last n when entries before it are missing, -2 when
-- another owner holds the lease, -3 when nobody does.
-- Debris in the lease's place is no lease.
local held = redis.call('TYPE', KEYS[1]).ok == 'hash' and redis.call('HMGET', KEYS[1], 'epoch', 'active') or {}
if held[1] ~= ARGV[1] then return held[1] and -2 or -3 end

local turn, n, last = ARGV[2], tonumber(ARGV[3]), -1
local tail = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if tail then
  local newest, at = string.match(tail[1], '^(%d+)-(%d+)$')
  if newest == turn then last = tonumber(at) end
end
if last >= n then return n end
-- A turn that ends unspoken has no start: its end is n = 1.
if last ~= n - 1 and not (n == 1 and last == -1) then return last end

redis.call('XADD', KEYS[2], turn .. '-' .. n, unpack(ARGV, 7, #ARGV))
redis.call('HSET', KEYS[1], 'active', '0')
redis.call('HDEL', KEYS[1], 'resume', 'owner')

local now = redis.call('TIME')
local state = 'idle'
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.sub(field, 1, 2) == 'w:' then state = 'queued' end
end
redis.pcall('HSET', KEYS[3], 'state', state, 'frames', n - 1, 'updated_ms',
  string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000)))
if ARGV[5] == '1' then redis.call('DEL', KEYS[5]) end
-- Turns may be too short for any other time to trim.
redis.call('XTRIM', KEYS[2], 'MAXLEN', '~', ARGV[6])
for i = 1, 4 do redis.call('PEXPIRE', KEYS[i], ARGV[4]) end
return n
