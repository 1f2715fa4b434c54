-- Of the backlog, take what needs no slot: requests whose deadline has passed.
--
-- KEYS and ARGV as ``backlog``, and then: most
-- Returns {how many were parked, {entry, fields}...}.
local found = {park()}
if found[1] > 0 then ring() end
local now = redis.call('TIME')
local now_ms = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000))
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', DUE, '-inf', now_ms, 'LIMIT', 0, ARGV[5])) do
  strike(entry)
  local item = pass(entry, PARKED, WORKER)
  if item then found[#found + 1] = item end
end
return found
