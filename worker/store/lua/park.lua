-- Park requests of ours: they wait for any worker's slot.
--
-- KEYS and ARGV as ``backlog``, and then: entries...
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
