-- End the turn that holds the lease: its end entry and the session's new state, in one step.
--
-- KEYS  lease, audio, session, spoken, refused, text
-- ARGV  epoch, turn, number, ttl_ms, keep_entries, end...
-- Returns number when the end stands, the turn's last entry number when entries before it are missing, -2 when a later
-- owner holds the lease, -3 when the server has forgotten ours.
--
-- text: only where the turn has a text stream. number is the end entry's.
local standing = fence(KEYS[1], ARGV[1])
if standing < 0 then return standing end

local turn, n, last = ARGV[2], tonumber(ARGV[3]), -1
local tail = newest(KEYS[2])
if tail then
  local of, at = string.match(tail[1], '^(%d+)-(%d+)$')
  if of == turn then last = tonumber(at) end
end
if last >= n then return n end
-- A turn that ends unspoken has no start entry: its end is number 1.
if last ~= n - 1 and not (n == 1 and last == -1) then return last end

redis.call('XADD', KEYS[2], turn .. '-' .. n, unpack(ARGV, 6))
redis.call('HSET', KEYS[1], 'active', '0')
redis.call('HDEL', KEYS[1], 'resume', 'owner')

local now = redis.call('TIME')
local now_ms = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000))
local waiter = nil
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  local entry = string.match(field, '^w:(%d+%-%d+):')
  if entry and (waiter == nil or is_before(entry, waiter)) then waiter = entry end
end
if n > 1 then redis.call('HSET', KEYS[1], 'spoke_ms', now_ms) end
redis.pcall('HSET', KEYS[3], 'state', waiter and 'queued' or 'idle', 'frames', n - 1, 'updated_ms', now_ms)
if KEYS[6] then
  -- Leave an empty stream with a TTL: what a client still writes must not create a key without one.
  redis.call('DEL', KEYS[6])
  redis.call('XADD', KEYS[6], 'MAXLEN', 0, '*', 'end', '1')
  redis.call('PEXPIRE', KEYS[6], ARGV[4])
end
local last_turn = answer_refused(KEYS[5], KEYS[2], KEYS[4], tonumber(turn), waiter, now_ms)
if last_turn > tonumber(turn) then redis.call('HSET', KEYS[1], 'turn', last_turn) end
-- Trim here too: a short turn may see no other time for it.
redis.call('XTRIM', KEYS[2], 'MAXLEN', '~', ARGV[5])
for i = 1, 5 do redis.call('PEXPIRE', KEYS[i], ARGV[4]) end
return n
