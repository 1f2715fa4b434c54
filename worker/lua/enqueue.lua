-- Let a request wait for its session.
--
-- KEYS  lease, session, spoken
-- ARGV  request, entry, model, "1" when it interrupts, ttl_ms
-- Returns how many wait before it, or -1 when its name was taken before.
local lease, session, spoken = KEYS[1], KEYS[2], KEYS[3]
local request, entry, model = ARGV[1], ARGV[2], ARGV[3]
for key, kind in pairs({[lease] = 'hash', [session] = 'hash', [spoken] = 'zset'}) do
  local found = redis.call('TYPE', key).ok
  if found ~= kind and found ~= 'none' then redis.call('DEL', key) end
end

local held = redis.call('HMGET', lease, 'active', 'entry', 'model')
if redis.call('ZSCORE', spoken, request) and not (held[1] == '1' and held[2] == entry and held[3] == model) then
  redis.call('HDEL', lease, 'w:' .. entry .. ':' .. model)
  return -1
end

local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local my_ms, my_seq = parts(entry)
local before = 0
for _, field in ipairs(redis.call('HKEYS', lease)) do
  local other = string.match(field, '^w:(%d+%-%d+):')
  if other then
    local ms, seq = parts(other)
    if ms < my_ms or (ms == my_ms and seq < my_seq) then before = before + 1 end
  end
end
redis.call('HSET', lease, 'w:' .. entry .. ':' .. model, (ARGV[4] == '1' and '!' or '.') .. request)
if held[1] ~= '1' then redis.call('HSET', session, 'state', 'queued') end
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[5]) end
return before
