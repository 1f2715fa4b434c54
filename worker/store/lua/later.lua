-- Look for a request of this name behind an entry of the queue: that is what "stop:<request>" covers.
--
-- KEYS  requests, order
-- ARGV  entry, session, request
-- Returns 1 when there is one.
for _, one in ipairs(unfinished(KEYS[1], KEYS[2], ARGV[2])) do
  if one[2] == ARGV[3] and is_before(ARGV[1], one[1]) then return 1 end
end
return 0
