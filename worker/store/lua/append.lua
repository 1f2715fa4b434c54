-- Append entries to the turn that holds the lease: fenced, idempotent, without a gap.
--
-- KEYS  lease, audio, session, spoken, refused
-- ARGV  epoch, turn, first, ttl_ms, keep_entries, resume, record..., entries...
-- Returns the turn's last entry number (-1: none), -2 when a later owner holds the lease, -3 when the server has
-- forgotten ours.
--
-- Entries that are there already are skipped, so that sending them again is harmless; a gap is refused.
--
-- first is the number of the first entry. ttl_ms and keep_entries are empty when it is not time for them, resume when
-- there is no new point. The count of the record's fields and values comes before them, and so for each entry.

local standing = fence(KEYS[1], ARGV[1])
if standing < 0 then return standing end

local turn, n, last = ARGV[2], tonumber(ARGV[3]), -1
local tail = newest(KEYS[2])
if tail then
  local of, at = string.match(tail[1], '^(%d+)-(%d+)$')
  if of == turn then last = tonumber(at) end
end
if n > last + 1 then return last end

local fields = tonumber(ARGV[7])
local at = 8 + fields
while at <= #ARGV do
  local width = tonumber(ARGV[at])
  if n > last then
    redis.call('XADD', KEYS[2], turn .. '-' .. n, unpack(ARGV, at + 1, at + width))
    last = n
  end
  n = n + 1
  at = at + 1 + width
end

if ARGV[6] ~= '' then redis.call('HSET', KEYS[1], 'resume', ARGV[6]) end
if fields > 0 then
  local noted = redis.pcall('HSET', KEYS[3], unpack(ARGV, 8, 7 + fields))
  -- The record is only for reading: a key of another type in its place does not stop the turn.
  if type(noted) == 'table' and not string.find(noted.err, 'WRONGTYPE', 1, true) then return noted end
end
if ARGV[5] ~= '' then redis.call('XTRIM', KEYS[2], 'MAXLEN', '~', ARGV[5]) end
if ARGV[4] ~= '' then
  for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[4]) end
end
return last
