-- Give up a turn before its end: the next owner's attempt does not count as a crash.
--
-- KEYS  lease
-- ARGV  epoch, blameless
-- Returns 1 when the lease was ours.
--
-- blameless: "1": do not count this attempt.
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' or redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 0 end
-- With a new epoch that nobody holds, what we have sent and is still on its way is refused.
redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('HDEL', KEYS[1], 'owner')
if ARGV[2] == '1' then redis.call('HINCRBY', KEYS[1], 'attempts', -1) end
return 1
