-- The session of a parked request is in conversation: it comes first when it is its tenant's turn.
--
-- KEYS and ARGV as ``backlog``, and then: entry
-- Returns 1 when it is parked.
local item = redis.call('ZSCORE', BACKLOG, ARGV[5]) and item_of(ARGV[5])
if not item then return 0 end
redis.call('ZREM', RANKS, rank(item, 1))
redis.call('ZADD', RANKS, 0, rank(item, 0))
keep_books()
return 1
