-- Take one request that waits for a slot, out of its turn: it needs none, or has one.
--
-- KEYS and ARGV as ``backlog``, and then: entry
-- Returns as ``take``.
local item = withdraw(ARGV[5])
if item then return {'fresh', item[1], item[2]} end
item = pass(ARGV[5], ORPHANS, WORKER)
if item then return {'take_over', item[1], item[2]} end
return {}
