-- Does a request of this name stand after mine in the queue? Says what ``stop:<request>`` covers.
--
-- KEYS  requests, order
-- ARGV  entry, session, request
for _, one in ipairs(unfinished(KEYS[1], KEYS[2], ARGV[2])) do
  if one[2] == ARGV[3] and is_before(ARGV[1], one[1]) then return 1 end
end
return 0
