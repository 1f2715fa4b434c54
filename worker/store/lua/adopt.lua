-- Take one request that waits for a slot, whichever is next.
--
-- KEYS  requests, wake, backlog, books, ranks
-- ARGV  group, orphans, parked, worker, entry
-- Returns as take.lua.
local item = withdraw(ARGV[5])
if item then return {'fresh', item[1], item[2]} end
item = pass(ARGV[5], ORPHANS, WORKER)
if item then return {'take_over', item[1], item[2]} end
return {}
