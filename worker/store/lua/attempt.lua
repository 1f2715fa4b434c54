-- Count what an owner does with a turn that killed the one before it, or seems to have.
--
-- KEYS  lease
-- ARGV  epoch, "1": another attempt begins; "0": it was survived, those so far count no more
-- Returns 1 when the lease is ours.
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' or redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 0 end
if ARGV[2] == '1' then
  redis.call('HINCRBY', KEYS[1], 'attempts', 1)
else
  redis.call('HSET', KEYS[1], 'attempts', 0)
end
return 1
