-- Give up a turn in its middle, in good order: the next owner's attempt does not count as a failure's.
--
-- KEYS  lease
-- ARGV  epoch, "1" when the attempt is not to be counted
-- Returns 1 when the lease was ours.
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' or redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 0 end
-- Nobody holds this epoch any more: what is still on its way from us is refused.
redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('HDEL', KEYS[1], 'owner')
if ARGV[2] == '1' then redis.call('HINCRBY', KEYS[1], 'attempts', -1) end
return 1
