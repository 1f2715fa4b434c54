-- Shared by scripts that look into a queue: which requests of a session are unfinished, and in which order.
--
-- Finished entries are deleted, so what is in the stream is unfinished. A sorted set beside it says whose each entry
-- is: members "<session> <entry> <name>", all with score 0, so that they are in the order of their names. Each entry is
-- read once, by the first script that looks so far; the member "!<entry>" says how far that was. A lost set is rebuilt.
local ORDER_TTL = 3600000
local PAGE = 256

-- The session and the turn's name of one entry; no session where it cannot be read.
local function whose(item)
  local fields, session, name = item[2], nil, item[1]
  for i = 1, #fields, 2 do
    if fields[i] == 'session' then session = fields[i + 1] end
    if fields[i] == 'request' then name = fields[i + 1] end
  end
  -- A request with an invalid name has its entry's id as its name.
  if not string.match(name, '^[%w_.:-]+$') or #name > 128 then name = item[1] end
  if session and (not string.match(session, '^[%w_.:-]+$') or #session > 128) then session = nil end
  return session, name
end

local function note_order(queue, order)
  local marker = redis.call('ZRANGEBYLEX', order, '[!', '("', 'LIMIT', 0, 1)[1]
  local last = marker and string.sub(marker, 2)
  while true do
    local page = redis.call('XRANGE', queue, last and '(' .. last or '-', '+', 'COUNT', PAGE)
    if #page == 0 then break end
    local members = {}
    for _, item in ipairs(page) do
      local session, name = whose(item)
      if session then
        members[#members + 1] = '0'
        members[#members + 1] = session .. ' ' .. item[1] .. ' ' .. name
      end
    end
    last = page[#page][1]
    if #members > 0 then redis.call('ZADD', order, unpack(members)) end
    if #page < PAGE then break end
  end
  if last and marker ~= '!' .. last then
    if marker then redis.call('ZREM', order, marker) end
    redis.call('ZADD', order, 0, '!' .. last)
  end
  redis.call('PEXPIRE', order, ORDER_TTL)
end

-- The session's unfinished requests: a list of {entry, name}.
local function unfinished(queue, order, session)
  note_order(queue, order)
  local found = {}
  for _, member in ipairs(redis.call('ZRANGEBYLEX', order, '[' .. session .. ' ', '(' .. session .. '!')) do
    local entry, name = string.match(member, '^[^ ]+ ([^ ]+) ([^ ]+)$')
    if #redis.call('XRANGE', queue, entry, entry) > 0 then
      found[#found + 1] = {entry, name}
    else
      redis.call('ZREM', order, member)  -- deleted by others than the fleet
    end
  end
  return found
end

-- The names of the session's requests that stand before an entry.
local function names_before(queue, order, entry, session)
  local names = {}
  for _, one in ipairs(unfinished(queue, order, session)) do
    if is_before(one[1], entry) then names[#names + 1] = one[2] end
  end
  return names
end

