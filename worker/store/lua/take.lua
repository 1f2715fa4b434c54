-- Take the next request for a free slot: one that was handed back first, then the backlog's.
--
-- KEYS  requests, wake, backlog, books, ranks
-- ARGV  group, orphans, parked, worker
-- Returns {claim, entry, fields} or nothing; the claim is "take_over" (an owner had it before) or "fresh".
while true do
  local pending = redis.call('XPENDING', QUEUE, GROUP, '-', '+', 1, ORPHANS)[1]
  if not pending then break end
  -- XCLAIM returns nothing for an entry that was deleted from the queue, and takes it off the list.
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
  -- It is this tenant's turn: its best-ranked request is served, and the other gets that one's tag.
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
