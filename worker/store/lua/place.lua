-- Shared: take a request off the list of those that wait for its session.
local function leave(lease, session, waiter)
  redis.call('HDEL', lease, waiter)
  if redis.call('HGET', lease, 'active') == '1' then return end
  for _, field in ipairs(redis.call('HKEYS', lease)) do
    if string.sub(field, 1, 2) == 'w:' then return end
  end
  if redis.call('HGET', session, 'state') == 'queued' then redis.call('HSET', session, 'state', 'idle') end
end

