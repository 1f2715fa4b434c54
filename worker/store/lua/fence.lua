-- Shared: the fence. Epochs only grow, so that one lower than ours, or none, is what a server has that has forgotten ours:
-- after a failover, say. Debris in the lease's place is no lease.
local function fence(lease, ours)
  local epoch = redis.call('TYPE', lease).ok == 'hash' and redis.call('HGET', lease, 'epoch')
  if epoch == ours then return 0 end
  return whole(epoch) > whole(ours) and -2 or -3
end

