-- The requests of the same session that stand before this one in its queue, newest first.
--
-- KEYS  requests
-- ARGV  entry, session
-- Returns their names.
return names_before(KEYS[1], ARGV[1], ARGV[2])
