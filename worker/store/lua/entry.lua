-- Shared: numbers, the order of stream ids, the newest entry of a session's stream.

-- A whole number as one of ours is written; 0 for anything else.
local function whole(value)
  return value and #value < 17 and string.match(value, '^%d+$') and tonumber(value) or 0
end

local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

local function is_before(one, other)
  local ms, seq = parts(one)
  local other_ms, other_seq = parts(other)
  return ms < other_ms or (ms == other_ms and seq < other_seq)
end

-- The newest entry of a session's stream. Only the fleet writes this key: one of another type in its place is deleted,
-- and the turn's owner publishes again what was lost.
local function newest(audio)
  local found = redis.pcall('XREVRANGE', audio, '+', '-', 'COUNT', 1)
  if found.err then
    if redis.call('TYPE', audio).ok == 'stream' then error(found) end
    redis.call('DEL', audio)
    return nil
  end
  return found[1]
end

