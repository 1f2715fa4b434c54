-- Put a parked request before its tenant's others: its session is in conversation.
--
-- KEYS  requests, wake, backlog, books, ranks
-- ARGV  group, orphans, parked, worker, entry
-- Returns 1 when it is parked.
local item = redis.call('ZSCORE', BACKLOG, ARGV[5]) and item_of(ARGV[5])
if not item then return 0 end
redis.call('ZREM', RANKS, rank(item, 1))
redis.call('ZADD', RANKS, 0, rank(item, 0))
keep_books()
return 1
