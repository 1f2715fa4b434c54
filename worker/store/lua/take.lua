-- Take the next request for a free slot: one that was given up first, then the backlog's.
--
-- KEYS and ARGV as ``backlog``
-- Returns {"take_over" (an owner had it before) or "fresh", entry, fields}, or nothing.
while true do
  local pending = redis.call('XPENDING', QUEUE, GROUP, '-', '+', 1, ORPHANS)[1]
  if not pending then break end
  -- One that somebody has deleted from the queue is taken off the list instead.
  local item = redis.call('XCLAIM', QUEUE, GROUP, WORKER, 0, pending[1])[1]
  if item then return {'take_over', item[1], item[2]} end
end

if redis.call('ZCARD', BACKLOG) == 0 then
  for _, pending in ipairs(redis.call('XPENDING', QUEUE, GROUP, '-', '+', CHUNK, PARKED)) do
    local item = item_of(pending[1])
    if item then
      enlist(item)
    else
      redis.call('XACK', QUEUE, GROUP, pending[1])
    end
  end
  keep_books()
end

while true do
  local first = redis.call('ZRANGE', BACKLOG, 0, 0, 'WITHSCORES')
  if #first == 0 then
    for _, key in ipairs({BOOKS, RANKS}) do redis.call('DEL', key) end
    return {}
  end
  -- It is this one's tenant's turn: whichever of the tenant's is next has it, and leaves its own.
  local entry, tag = first[1], first[2]
  local item = item_of(entry)
  local tenant = item and tenant_of(item)
  local name = item and redis.call('ZRANGEBYLEX', RANKS, '[' .. tenant .. ' ', '(' .. tenant .. '!', 'LIMIT', 0, 1)[1]
  if name then
    local ms, seq = string.match(name, ' 0*(%d+)%-0*(%d+)$')
    local next = ms .. '-' .. seq
    if next ~= entry then
      local own = redis.call('ZSCORE', BACKLOG, next)
      redis.call('ZREM', RANKS, name)
      if own then redis.call('ZADD', BACKLOG, own, entry) end
      entry = own and next
    end
  end
  item = entry and withdraw(entry)
  if item then
    redis.call('HSET', BOOKS, 'served', tag)
    redis.call('PEXPIRE', BOOKS, BOOKS_TTL)
    return {'fresh', item[1], item[2]}
  end
end
