-- Remove a worker's record, if it is still this instance's.
--
-- KEYS  record
-- ARGV  instance
-- Returns 1 when it was.
if redis.call('HGET', KEYS[1], 'instance') == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
