-- A request is done: off the pending list and off the queue, as one.
--
-- KEYS  requests
-- ARGV  group, entry
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
return redis.call('XDEL', KEYS[1], ARGV[2])
