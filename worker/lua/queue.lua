-- Shared by scripts that look into a queue: finished entries are deleted, so what stands in the stream is
-- unfinished, in its order.

-- The session and the turn's name of one entry.
local function whose(item)
  local fields, session, name = item[2], nil, item[1]
  for i = 1, #fields, 2 do
    if fields[i] == 'session' then session = fields[i + 1] end
    if fields[i] == 'request' then name = fields[i + 1] end
  end
  -- An invalid name is none: that turn goes by its entry's id.
  if not string.match(name, '^[%w_.:-]+$') or #name > 128 then name = item[1] end
  return session, name
end

-- The names of the session's requests that stand before an entry, newest first.
local function names_before(queue, entry, session)
  local names, before = {}, '(' .. entry
  while true do
    local page = redis.call('XREVRANGE', queue, before, '-', 'COUNT', 64)
    for _, item in ipairs(page) do
      local of, name = whose(item)
      if of == session then names[#names + 1] = name end
    end
    if #page < 64 then return names end
    before = '(' .. page[#page][1]
  end
end

