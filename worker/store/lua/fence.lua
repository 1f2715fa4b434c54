-- Shared: the fence. Epochs only grow, so a lower one than ours, or none, means that the server has forgotten ours,
-- after a failover for instance. A key of another type in the lease's place counts as none.
local function fence(lease, ours)
  local epoch = redis.call('TYPE', lease).ok == 'hash' and redis.call('HGET', lease, 'epoch')
  if epoch == ours then return 0 end
  return whole(epoch) > whole(ours) and -2 or -3
end

