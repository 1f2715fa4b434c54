-- Shared: requests refused because too many wait in their session. They wait for their answer in a list, "<entry> <name>
-- <error>" each, and nobody waits with them: whoever moves the session on answers them in their order.
local MOST_REFUSED = 1000

-- Answer those that stand before an entry (nil: all). Returns the number of the session's last turn.
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

