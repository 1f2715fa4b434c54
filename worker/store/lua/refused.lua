-- Shared: requests refused because too many wait in their session. A list holds them until they are answered,
-- "<entry> <name> <error>" each, in the order of their entries. No worker waits with them: whoever moves the session on
-- publishes their ends in that order.
local MOST_REFUSED = 1000

-- Insert one in the order of entries: workers find them in any order.
local function refuse(refused, entry, name, problem)
  if redis.call('LLEN', refused) >= MOST_REFUSED then return end
  local line, at = entry .. ' ' .. name .. ' ' .. problem, -1
  while true do
    local other = redis.call('LINDEX', refused, at)
    if not other then return redis.call('LPUSH', refused, line) end
    if is_before(string.match(other, '^[^ ]+'), entry) then
      return redis.call('LINSERT', refused, 'AFTER', other, line)
    end
    at = at - 1
  end
end

-- Publish the ends of those that stand before an entry (nil: all). Returns the number of the session's last turn.
local function answer_refused(refused, audio, spoken, last_turn, entry, now_ms)
  if redis.call('TYPE', refused).ok ~= 'list' then return last_turn end
  while true do
    local first = redis.call('LINDEX', refused, 0)
    if not first then return last_turn end
    local at, name, problem = string.match(first, '^([^ ]+) ([^ ]+) (.*)$')
    if entry and not is_before(at, entry) then return last_turn end
    redis.call('LPOP', refused)
    last_turn = last_turn + 1
    redis.call('XADD', audio, string.format('%.0f', last_turn) .. '-1', 'event', 'end', 'request', name,
      'reason', 'rejected', 'frames', 0, 'error', problem, 't', now_ms)
    redis.call('ZADD', spoken, last_turn, name)
  end
end

