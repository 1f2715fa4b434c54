-- Shared by scripts that serve the backlog: requests that came while no slot was free.
--
-- They are parked in the group's pending list, in the name of a pseudo consumer, and served by start-time fair
-- queueing: a request's tag is one more than its tenant's last one, or than the tag served last, and the lowest
-- goes first. So tenants take turns however much one of them asks for, and one that comes late is next. The tenant
-- is what stands before the first ':' of the session. The books can be lost: they are made anew from the pending
-- list.
--
-- KEYS  requests, wake, backlog (entry -> tag), books (tenant -> last tag, and the tag served last),
--       due (entry -> deadline)
-- ARGV  group, orphans, parked, worker
local QUEUE, WAKE, BACKLOG, BOOKS, DUE = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local GROUP, ORPHANS, PARKED, WORKER = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local BOOKS_TTL = 3600000
local CHUNK = 256

-- These keys are ours alone: one of another type is debris.
for key, kind in pairs({[BACKLOG] = 'zset', [BOOKS] = 'hash', [DUE] = 'zset'}) do
  local found = redis.call('TYPE', key).ok
  if found ~= kind and found ~= 'none' then redis.call('DEL', key) end
end

local function enlist(item)
  local fields, session, deadline = item[2], '', nil
  for i = 1, #fields, 2 do
    if fields[i] == 'session' then session = fields[i + 1] end
    if fields[i] == 'deadline_ms' and #fields[i + 1] < 20 then deadline = string.match(fields[i + 1], '^%d+$') end
  end
  local tenant = 'of:' .. string.sub(string.match(session, '^([^:]*):') or '', 1, 128)
  local tags = redis.call('HMGET', BOOKS, 'served', tenant)
  local tag = math.max(tonumber(tags[1] or '') or 0, tonumber(tags[2] or '') or 0) + 1
  redis.call('HSET', BOOKS, tenant, tag)
  redis.call('ZADD', BACKLOG, tag, item[1])
  if deadline then redis.call('ZADD', DUE, deadline, item[1]) end
end

local function strike(entry)
  redis.call('ZREM', BACKLOG, entry)
  redis.call('ZREM', DUE, entry)
end

-- Park what was not delivered yet. Returns how many.
local function park()
  local parked = 0
  local reply = redis.call('XREADGROUP', 'GROUP', GROUP, PARKED, 'COUNT', CHUNK, 'STREAMS', QUEUE, '>')
  for _, item in ipairs(reply and reply[1][2] or {}) do
    enlist(item)
    parked = parked + 1
  end
  if redis.call('ZCARD', BACKLOG) == 0 then
    for _, pending in ipairs(redis.call('XPENDING', QUEUE, GROUP, '-', '+', CHUNK, PARKED)) do
      local item = redis.call('XRANGE', QUEUE, pending[1], pending[1])[1]
      if item then
        enlist(item)
        parked = parked + 1
      else
        redis.call('XACK', QUEUE, GROUP, pending[1])
      end
    end
  end
  for _, key in ipairs({BACKLOG, BOOKS, DUE}) do redis.call('PEXPIRE', key, BOOKS_TTL) end
  return parked
end

-- Give a request that is in one name to another's. Returns it, or nothing: somebody else has it, or it is gone.
local function pass(entry, from, to)
  if #redis.call('XPENDING', QUEUE, GROUP, entry, entry, 1, from) == 0 then return nil end
  return redis.call('XCLAIM', QUEUE, GROUP, to, 0, entry)[1]
end

-- Wake the workers that are idle.
local function ring()
  local now = redis.call('TIME')
  redis.call('SET', WAKE, now[1] .. '.' .. now[2], 'PX', 60000)
end

