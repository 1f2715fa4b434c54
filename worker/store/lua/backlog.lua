-- Shared by the scripts of the backlog: requests that came while no slot was free.
--
-- The pending list of the group holds them, in the name of a pseudo consumer. They are served by start-time fair
-- queueing: a request's tag is one more than the highest of its tenant's last tag and the tag served last, and the
-- lowest tag is next. So tenants take turns however much one of them asks for, and one that comes late is soon next.
-- The tenant is what stands before the first ':' of the session. A tenant's own requests are served in the order of
-- their ranks: those whose session is in conversation first. All keys but the pending list can be lost: they are
-- rebuilt from it.
--
-- KEYS  requests, wake,
--       backlog (entry -> tag),
--       books (tenant -> its last tag, and the tag served last),
--       ranks (members "<tenant> <0: in conversation, else 1> <entry, in digits of one width>", all with score 0,
--       so that they are in the order of their names)
-- ARGV  group, orphans, parked (the pseudo consumer), worker
local QUEUE, WAKE, BACKLOG, BOOKS, RANKS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local GROUP, ORPHANS, PARKED, WORKER = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local BOOKS_TTL = 3600000
local CHUNK = 256

-- Only the fleet writes these keys: delete one of another type.
for key, kind in pairs({[BACKLOG] = 'zset', [BOOKS] = 'hash', [RANKS] = 'zset'}) do
  local found = redis.call('TYPE', key).ok
  if found ~= kind and found ~= 'none' then redis.call('DEL', key) end
end

local function keep_books()
  for _, key in ipairs({BACKLOG, BOOKS, RANKS}) do redis.call('PEXPIRE', key, BOOKS_TTL) end
end

-- The request of an entry, or nothing where it was deleted.
local function item_of(entry)
  return redis.call('XRANGE', QUEUE, entry, entry)[1]
end

local function tenant_of(item)
  local fields = item[2]
  for i = 1, #fields, 2 do
    if fields[i] == 'session' then
      return string.sub(string.match(fields[i + 1], '^([%w_.-]*):') or '', 1, 128)
    end
  end
  return ''
end

local function rank(item, class)
  local ms, seq = string.match(item[1], '^(%d+)-(%d+)$')
  local entry = string.rep('0', 20 - #ms) .. ms .. '-' .. string.rep('0', 20 - #seq) .. seq
  return tenant_of(item) .. ' ' .. class .. ' ' .. entry
end

local function enlist(item)
  local tenant = 'of:' .. tenant_of(item)
  local tags = redis.call('HMGET', BOOKS, 'served', tenant)
  local tag = math.max(tonumber(tags[1] or '') or 0, tonumber(tags[2] or '') or 0) + 1
  redis.call('HSET', BOOKS, tenant, tag)
  redis.call('ZADD', BACKLOG, tag, item[1])
  redis.call('ZADD', RANKS, 0, rank(item, 1))
end

-- Give a request from one consumer to another. Returns it, or nothing where another has it or it is gone.
local function pass(entry, from, to)
  if #redis.call('XPENDING', QUEUE, GROUP, entry, entry, 1, from) == 0 then return nil end
  return redis.call('XCLAIM', QUEUE, GROUP, to, 0, entry)[1]
end

-- Give a parked request to the worker. Returns it, or nothing.
local function withdraw(entry)
  local item = item_of(entry)
  redis.call('ZREM', BACKLOG, entry)
  if item then redis.call('ZREM', RANKS, rank(item, 0), rank(item, 1)) end
  return pass(entry, PARKED, WORKER)
end

-- Wake the workers that are idle.
local function ring()
  local now = redis.call('TIME')
  redis.call('SET', WAKE, now[1] .. '.' .. now[2], 'PX', 60000)
end

