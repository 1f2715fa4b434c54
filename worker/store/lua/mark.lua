-- Add what the turn's owner decided to the turn's text stream, behind the last entry that it has read.
--
-- So the decision stands at one place of the text for every later owner, and text that came in between outruns it.
-- The key keeps its TTL, or none; one that is not there is not made.
--
-- KEYS  lease, text
-- ARGV  epoch, last entry read ("-": none), the new entry's id, fields...
-- Returns 1 when it stands, 0 when there is more to read or the lease is not ours, -1 when it cannot be added.
if fence(KEYS[1], ARGV[1]) < 0 or redis.call('HGET', KEYS[1], 'active') ~= '1' then return 0 end
local from = ARGV[2] == '-' and '-' or '(' .. ARGV[2]
if #redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', 1) > 0 then return 0 end
local added = redis.pcall('XADD', KEYS[2], 'NOMKSTREAM', ARGV[3], unpack(ARGV, 4))
if type(added) == 'string' then return 1 end
-- Refused is an id behind which there is none, or one before an entry that has been deleted.
if added and not string.match(added.err, '^ERR ') then return added end
return -1
