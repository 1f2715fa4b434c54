-- Take the session's lease for one request, if it is that request's turn.
--
-- KEYS  lease, audio, session, spoken, refused, requests, order
-- ARGV  claim, request, entry, model, worker, ttl_ms, least_turn, last_epoch, ticket, earlier...
-- Returns {standing}, and where the lease is granted {standing, epoch, turn, last, attempts, resume}.
--
-- The lease's epoch is the fence: whoever holds the newest one may append, nobody else. Epochs are server
-- microseconds, so that they grow even after the server has forgotten the last one.
--
-- requests, order: the request's queue, only where it is on this server. Otherwise earlier names the session's requests
-- that stand before this one in its queue.
-- claim: "fresh": nobody has held the lease for this request, or this worker does. "take_over": its owner is dead or
-- gave it up. "regain": this worker held it until the server forgot it. "inquire": this worker lost it; say who has it
-- and take nothing. "inquire_alive": the same, and the attempt that it began did not kill it.
-- ticket: this call's own. The same call, sent again because its reply was lost, changes nothing.
-- standing: "new", "taken_over", "crash_suspected" (as "taken_over", but the last owner died before it published any
-- frame: the attempt is not counted yet), "held_elsewhere" (another worker holds the lease for this entry), "waiting"
-- (another turn comes first) or "already_answered" (a request of this name).
local lease, audio, session, spoken, refused = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local claim, request, entry, model, worker = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local asks = claim == 'inquire' or claim == 'inquire_alive'
local ttl, least, last_epoch, ticket = ARGV[6], tonumber(ARGV[7]), whole(ARGV[8]), ARGV[9]

-- Only the fleet writes these keys: delete one of another type.
for key, kind in pairs({[lease] = 'hash', [session] = 'hash', [spoken] = 'zset', [refused] = 'list'}) do
  local found = redis.call('TYPE', key).ok
  if found ~= kind and found ~= 'none' then redis.call('DEL', key) end
end

local now = redis.call('TIME')
local now_ms = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000))
local waiter = 'w:' .. entry .. ':' .. model

-- What was published last is read from the stream itself, so that nothing can disagree with it.
local last_turn, last, ended = 0, -1, true
local tail = newest(audio)
if tail then
  local turn, n = string.match(tail[1], '^(%d+)-(%d+)$')
  last_turn, last, ended = tonumber(turn), tonumber(n), false
  for i = 1, #tail[2], 2 do
    if tail[2][i] == 'event' and tail[2][i + 1] == 'end' then ended = true end
  end
end

local held = redis.call('HMGET', lease, 'active', 'entry', 'model', 'turn', 'epoch', 'attempts', 'progress', 'resume',
  'owner', 'ticket', 'standing', 'request')
local turn = whole(held[4])
local epoch = math.max(now[1] * 1000000 + now[2], whole(held[5]) + 1)
epoch = string.format('%.0f', epoch)

local function keep()
  for i = 1, 5 do redis.call('PEXPIRE', KEYS[i], ttl) end
end

local function speak(standing, turn, last, attempts, resume)
  redis.call('HSET', lease, 'active', '1', 'epoch', epoch, 'turn', turn, 'request', request, 'entry', entry,
    'model', model, 'owner', worker, 'ticket', ticket, 'standing', standing, 'attempts', attempts,
    'progress', math.max(last, 0))
  redis.call('HDEL', lease, waiter)
  redis.call('ZADD', spoken, turn, request)
  redis.call('ZREMRANGEBYRANK', spoken, 0, -1025)
  redis.call('HSET', session, 'state', 'speaking', 'turn', turn, 'request', request, 'model', model,
    'worker', worker, 'frames', math.max(last, 0), 'updated_ms', now_ms)
  if standing == 'new' then redis.call('HDEL', session, 'first_audio_ms', 'voice') end
  keep()
  return {standing, epoch, turn, last, attempts, resume or ''}
end

if held[1] == '1' then
  if held[2] == entry and held[3] == model then
    -- A lease in our name was granted by a call whose reply was lost. One older than our last epoch is what a failover
    -- brought back.
    local ours = held[9] == worker or whole(held[5]) <= last_epoch
    if claim == 'inquire_alive' and whole(held[6]) > 0 then redis.call('HINCRBY', lease, 'attempts', -1) end
    if asks or (claim ~= 'take_over' and not ours) then return {'held_elsewhere'} end
    if last_turn ~= turn then last = -1 end
    local attempts = whole(held[6])
    if held[10] == ticket then return {held[11], held[5], turn, last, attempts, held[8] or ''} end
    if claim ~= 'take_over' then return speak('taken_over', turn, last, attempts, held[8]) end
    -- The last owner published a frame: the request did not kill it.
    if last > whole(held[7]) then return speak('taken_over', turn, last, 1, held[8]) end
    -- The last owner gave the turn up in good order: count the attempt, suspect no crash.
    if not held[9] then return speak('taken_over', turn, last, attempts + 1, held[8]) end
    return speak('crash_suspected', turn, last, attempts, held[8])
  end
  -- A second request of the name that is being spoken waits for its end: should the turn be lost, it continues it.
  if held[12] ~= request and redis.call('ZSCORE', spoken, request) then
    leave(lease, session, waiter)
    return {'already_answered'}
  end
  return {'waiting'}
end

-- A lost lease (expired, or forgotten in a failover) leaves a turn without an end in the stream.
local unended = nil
if not ended then
  unended = ''
  local first = redis.call('XRANGE', audio, last_turn .. '-0', last_turn .. '-0')[1]
  if first then
    for i = 1, #first[2], 2 do
      if first[2][i] == 'request' then unended = first[2][i + 1] end
    end
  end
  if not asks and (unended == request or (claim == 'regain' and least == last_turn)) then
    return speak('taken_over', last_turn, last, 1, '')
  end
end

local spoken_as = tonumber(redis.call('ZSCORE', spoken, request) or '')
if spoken_as and (claim ~= 'regain' or spoken_as < last_turn or (spoken_as == last_turn and ended)) then
  leave(lease, session, waiter)
  return {'already_answered'}
end
if asks then return {'waiting'} end

-- Requests before this one in its queue that were not spoken yet may not have reached their session yet; one that
-- only lost its lease continues as soon as its owner notices.
local earlier = {unpack(ARGV, 10)}
if KEYS[6] and redis.call('TYPE', KEYS[6]).ok == 'stream' then
  earlier = names_before(KEYS[6], KEYS[7], entry, string.match(audio, '{(.*)}'))
end
for _, name in ipairs(earlier) do
  if name == unended or not redis.call('ZSCORE', spoken, name) then return {'waiting'} end
end

-- Requests of one session may wait in several models' queues: the oldest comes first.
local fields = redis.call('HGETALL', lease)
for i = 1, #fields, 2 do
  local other, queue = string.match(fields[i], '^w:(%d+%-%d+):(.+)$')
  if other and fields[i] ~= waiter and (is_before(other, entry) or (other == entry and queue < model)) then
    -- Remove the place of one that was answered meanwhile.
    if not redis.call('ZSCORE', spoken, string.sub(fields[i + 1], 2)) then return {'waiting'} end
    redis.call('HDEL', lease, fields[i])
  end
end

if unended then
  redis.call('XADD', audio, last_turn .. '-' .. (last + 1), 'event', 'end', 'request', unended, 'reason', 'failed',
    'frames', math.max(last, 0), 'error', 'lease_lost', 't', now_ms)
end
last_turn = answer_refused(refused, audio, spoken, math.max(last_turn, turn), entry, now_ms)
return speak('new', math.max(last_turn + 1, least), -1, 1, '')
