-- Park requests of the worker's: they wait for any worker's slot.
--
-- KEYS  requests, wake, backlog, books, ranks
-- ARGV  group, orphans, parked, worker, entries...
-- Returns how many were parked.
local parked = 0
for i = 5, #ARGV do
  local item = pass(ARGV[i], WORKER, PARKED)
  if item then
    enlist(item)
    parked = parked + 1
  end
end
if parked > 0 then
  keep_books()
  ring()
end
return parked
