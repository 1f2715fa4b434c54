-- Count another attempt at a turn that seems to have killed its last owner, or count none of those so far.
--
-- KEYS  lease
-- ARGV  epoch, begins
-- Returns 1 when the lease is ours.
--
-- begins: "1": another attempt begins. "0": it has made all the audio that it may make now, so none so far counts.
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' or redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 0 end
if ARGV[2] == '1' then
  redis.call('HINCRBY', KEYS[1], 'attempts', 1)
else
  redis.call('HSET', KEYS[1], 'attempts', 0)
end
return 1
