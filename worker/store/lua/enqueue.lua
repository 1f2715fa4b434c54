-- Let a request wait for its session.
--
-- KEYS  lease, session, spoken, refused, requests, order
-- ARGV  request, entry, model, interrupts, ttl_ms, most, conversation_ms, earlier...
-- Returns {standing, "1" when it interrupts the requests before it, "1" when the session is in conversation}.
--
-- requests, order and earlier: as in acquire.lua. most: so many may wait in the session. conversation_ms: a session
-- that spoke within this time is in conversation.
-- standing: "waiting", "already_answered" (a request of this name), "session_full" (too many wait: the rejection is
-- kept and published in its order) or "held_elsewhere" (another worker holds the lease for this entry).
local lease, session, spoken, refused = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local request, entry, model, most = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[6])
for key, kind in pairs({[lease] = 'hash', [session] = 'hash', [spoken] = 'zset', [refused] = 'list'}) do
  local found = redis.call('TYPE', key).ok
  if found ~= kind and found ~= 'none' then redis.call('DEL', key) end
end

local function keep()
  for i = 1, 4 do redis.call('PEXPIRE', KEYS[i], ARGV[5]) end
end

local waiter = 'w:' .. entry .. ':' .. model
local held = redis.call('HMGET', lease, 'active', 'entry', 'model', 'turn', waiter, 'request', 'spoke_ms')
local is_spoken = held[1] == '1' and held[6] == request
if held[1] == '1' and held[2] == entry and held[3] == model then return {'held_elsewhere', '0', '0'} end
if redis.call('ZSCORE', spoken, request) and not is_spoken then
  leave(lease, session, waiter)
  return {'already_answered', '0', '0'}
end

-- Requests before it wait here already, or are still in the queue. Both count, so that its place does not depend on
-- which worker is faster.
local before, listed, interrupts = 0, {}, ARGV[4] == '1' and not is_spoken
local fields = redis.call('HGETALL', lease)
for i = 1, #fields, 2 do
  local other = string.match(fields[i], '^w:(%d+%-%d+):')
  if other and is_before(other, entry) then
    local name = string.sub(fields[i + 1], 2)
    before = before + 1
    listed[name] = true
    -- A second request of the same name has interrupted already: neither the first nor what was added since.
    if name == request then interrupts = false end
  end
end
local earlier = {unpack(ARGV, 8)}
if KEYS[5] and before < most and redis.call('TYPE', KEYS[5]).ok == 'stream' then
  earlier = names_before(KEYS[5], KEYS[6], entry, string.match(lease, '{(.*)}'))
end
for _, name in ipairs(earlier) do
  if not listed[name] and not redis.call('ZSCORE', spoken, name) then
    before = before + 1
    listed[name] = true
  end
end
if before >= most and is_spoken then return {'already_answered', '0', '0'} end
if before >= most and not held[5] then
  redis.call('ZADD', spoken, whole(held[4]), request)
  refuse(refused, entry, request, 'max_waiting_turns: ' .. most .. ' requests wait in this session')
  keep()
  return {'session_full', '0', '0'}
end
redis.call('HSET', lease, waiter, (interrupts and '!' or '.') .. request)
if held[1] ~= '1' then redis.call('HSET', session, 'state', 'queued') end
keep()
local now = redis.call('TIME')
local since_ms = now[1] * 1000 + math.floor(now[2] / 1000) - whole(held[7])
local talks = held[1] == '1' or since_ms < tonumber(ARGV[7])
return {'waiting', interrupts and '1' or '0', talks and '1' or '0'}
