-- Take the oldest request that nobody owns.
--
-- KEYS  requests
-- ARGV  group, orphans, worker
-- Returns {{entry, fields}} or nothing.
while true do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2])
  if #pending == 0 then return {} end
  -- One that somebody has deleted from the queue is taken off the list instead.
  local taken = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, pending[1][1])
  if #taken > 0 then return taken end
end
