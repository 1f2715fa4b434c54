-- Take the next request for a free slot: one that was given up first, then the backlog's.
--
-- KEYS and ARGV as ``backlog``
-- Returns {"over" (an owner had it before) or "fresh", entry, fields}, or nothing.
while true do
  local pending = redis.call('XPENDING', QUEUE, GROUP, '-', '+', 1, ORPHANS)[1]
  if not pending then break end
  -- One that somebody has deleted from the queue is taken off the list instead.
  local item = redis.call('XCLAIM', QUEUE, GROUP, WORKER, 0, pending[1])[1]
  if item then return {'over', item[1], item[2]} end
end

local parked = park()
while true do
  local first = redis.call('ZRANGE', BACKLOG, 0, 0, 'WITHSCORES')
  if #first == 0 then
    redis.call('DEL', BOOKS)
    return {}
  end
  strike(first[1])
  local item = pass(first[1], PARKED, WORKER)
  if item then
    redis.call('HSET', BOOKS, 'served', first[2])
    redis.call('PEXPIRE', BOOKS, BOOKS_TTL)
    if parked > 1 then ring() end
    return {'fresh', item[1], item[2]}
  end
end
