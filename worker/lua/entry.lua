-- Shared: numbers, and stream ids in their order.

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

