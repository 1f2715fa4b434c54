-- Add the owner's decision to the turn's text stream, behind the last entry that it has read.
--
-- KEYS  lease, text
-- ARGV  epoch, after, entry, fields...
-- Returns 1 when it stands, 0 when there is more to read or the lease is not ours, -1 when it cannot be added.
--
-- So the decision has one place in the text for every later owner, and text that came in between goes before it.
-- The key keeps its TTL, or none; a missing one is not made.
--
-- after is the last entry read ("-": none), entry the new one's id.
if fence(KEYS[1], ARGV[1]) < 0 or redis.call('HGET', KEYS[1], 'active') ~= '1' then return 0 end
local from = ARGV[2] == '-' and '-' or '(' .. ARGV[2]
if #redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', 1) > 0 then return 0 end
local added = redis.pcall('XADD', KEYS[2], 'NOMKSTREAM', ARGV[3], unpack(ARGV, 4))
if type(added) == 'string' then return 1 end
-- Redis refuses an id that is not above the last one ever added, which may have been deleted since.
if added and not string.match(added.err, '^ERR ') then return added end
return -1
