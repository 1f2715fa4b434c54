-- List the requests of the same session that stand before this one in its queue.
--
-- KEYS  requests, order
-- ARGV  entry, session
-- Returns their names.
return names_before(KEYS[1], KEYS[2], ARGV[1], ARGV[2])
