/**
 * Everything that the quota store does, in one script: the clock is Redis's own, every op is checked before any is charged,
 * and every key that it makes has a time to live. It is called for every request, hence its flat arguments: one `MGET`
 * reads all counters, one `SET` writes each.
 *
 * The usual call is `charge`: all or nothing, no id. KEYS are the counters; ARGV: `charge`, the kind of each op as one letter,
 * and a JSON array with limit, need, cost, and two more as below, op after op: one argument instead of many is what makes it
 * fast, here and in the client. The answer: allowed, nowMs, then the sum of each calendar counter and the level of each rate in
 * millionths (or after an `L`, where that is no safe integer); [-2, nowMs] sends the client the long way.
 *
 * Otherwise KEYS[1] is the slot, `<prefix>:{<hash>}`; all other keys begin with it, so that they live on the same node of a cluster.
 * ARGV: command (`take`, `settle`, `reset`), mode, id (or empty), holdMs, share, number of ops, actual, granted (both lists
 * with commas), takenMs; then per op: key, kind, limit, need, cost, reserved (`1` or `0`), and two more: gcra (`g`) burst and
 * periodMs; calendar (`c`) startMs and endMs of the window that holds the client's idea of the time; concurrent (`n`) ttlMs and
 * nothing. A window that does not hold Redis's time: the answer is `[-1, nowMs]` and nothing has changed.
 *
 * The answer of `take`: allowed, nowMs, then granted, used, resetMs, retryMs (-1: never) of each op.
 *
 * Counters: calendar is `used` as text, gcra two doubles, level and drainedMs; each is followed by when the first reservation
 * expires, where there is one. Concurrent is a sorted set of ids by expiry. A reservation also lies in a sorted set beside its
 * counter, by expiry. A hold is a hash.
 */
export const QUOTA_SCRIPT = `
local call, format, match = redis.call, string.format, string.match
local floor, ceil, max, min = math.floor, math.ceil, math.max, math.min
local pack, unpackDoubles = struct.pack, struct.unpack
local time = call('TIME')
local now = time[1] * 1000 + floor(time[2] / 1000)
local DAY = 86400000

if ARGV[1] == 'charge' then
  local kinds, numbers = ARGV[2], cjson.decode(ARGV[3])
  local count = #KEYS
  local raws = call('MGET', unpack(KEYS))
  local result, levels, allowed = { 1, now }, {}, true
  for i = 1, count do
    local at = i * 5 - 5
    local room, need, first, second = numbers[at + 1], numbers[at + 2], numbers[at + 4], numbers[at + 5]
    local raw, level = raws[i], 0
    if kinds:byte(i) == 99 then
      if now < first or now >= second then return { -1, now } end
      if raw then level = tonumber(raw) end
    else
      if raw then
        local drained
        if #raw == 16 then level, drained = unpackDoubles('<dd', raw) end
        level = drained and now >= drained and max(0, level - (now - drained) * room / second)
      end
      room = first + min(1e-3, 1e-9 + first * 4e-16)
    end
    -- There are reservations, or the clock was set back: that takes the long way.
    if not level then return { -2, now } end
    levels[i] = level
    if need > 0 and level + need > room then allowed = false end
  end
  if not allowed then result[1] = 0 end
  for i = 1, count do
    local at = i * 5 - 5
    local level, cost, second, isSum = levels[i], numbers[at + 3], numbers[at + 5], kinds:byte(i) == 99
    if allowed and cost > 0 then
      level = level + cost
      if not isSum then
        local limit, till = numbers[at + 1], DAY
        if limit > 0 then till = min(3660 * DAY, ceil(level * second / limit) + 1000) end
        call('SET', KEYS[i], pack('<dd', level, now), 'PXAT', now + till)
      elseif raws[i] then call('INCRBY', KEYS[i], cost)
      else call('SET', KEYS[i], cost, 'PXAT', ceil(second) + DAY) end
    end
    -- Clients read long integers by adding digits up, which rounds.
    if isSum then result[2 + i] = level > 1e15 and format('%.0f', level) or level
    else result[2 + i] = level > 1e9 and format('L%.17g', level) or floor(level * 1e6 + 0.5) end
  end
  return result
end

local slot, command, mode, id = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local MAX_UNITS = 9007199254740991
local HEAD, WIDTH = 9, 8

local function text(number) return format('%.0f', number) end
local function listOf(packed)
  local list = {}
  for part in string.gmatch(packed, '[^,]+') do list[#list + 1] = tonumber(part) end
  return list
end

local count = 0
local keys, kinds, limits, needs, costs, reserved, firsts, seconds = {}, {}, {}, {}, {}, {}, {}, {}
local used, expiries, dirty = {}, {}, {}

local function parse(source, head, number)
  count = number
  for i = 1, number do
    local at = head + (i - 1) * WIDTH
    keys[i] = slot .. ':' .. source[at + 1]
    kinds[i] = source[at + 2]
    limits[i] = tonumber(source[at + 3])
    needs[i] = tonumber(source[at + 4])
    costs[i] = tonumber(source[at + 5])
    reserved[i] = source[at + 6] == '1'
    firsts[i] = tonumber(source[at + 7])
    seconds[i] = tonumber(source[at + 8])
    used[i] = 0
    expiries[i] = nil
    dirty[i] = false
  end
end

-- What a level has drained since is free already: giving that back too would admit more than the burst.
local function giveBack(i, units, charged, takenMs)
  if kinds[i] == 'g' then units = min(units, charged - max(0, now - takenMs) * limits[i] / seconds[i]) end
  used[i] = max(0, used[i] - max(0, units))
end

-- Gives back what expired reservations hold.
local function sweep(i)
  local held = keys[i] .. ':r'
  for _, member in ipairs(call('ZRANGEBYSCORE', held, '-inf', text(now), 'LIMIT', 0, 1000)) do
    local units, takenMs = match(member, '^(%d+):(%d+):')
    giveBack(i, tonumber(units), tonumber(units), tonumber(takenMs))
    call('ZREM', held, member)
  end
  local first = call('ZRANGE', held, 0, 0, 'WITHSCORES')
  expiries[i] = first[2] and tonumber(first[2])
  dirty[i] = true
end

local function load(i, raw)
  if kinds[i] == 'n' then
    call('ZREMRANGEBYSCORE', keys[i], '-inf', text(now))
    for _, member in ipairs(call('ZRANGE', keys[i], 0, -1)) do used[i] = used[i] + tonumber(match(member, '^(%d+):')) end
    return
  end
  if not raw then return end
  local units, expiry
  if kinds[i] == 'c' then
    units = tonumber(raw)
    if not units then
      local sum, first = match(raw, '^(%S+) (%S+)$')
      units, expiry = tonumber(sum), tonumber(first)
    end
  else
    local drained
    units, drained = unpackDoubles('<dd', raw)
    if #raw == 24 then expiry = unpackDoubles('<d', raw, 17) end
    -- A clock that was set back drains from now on, instead of standing still until it has caught up.
    if now >= drained then units = max(0, units - (now - drained) * limits[i] / seconds[i]) else dirty[i] = true end
  end
  used[i], expiries[i] = units, expiry
  if expiry and expiry <= now then sweep(i) end
end

local function save(i)
  local expiry, value, till = expiries[i]
  if kinds[i] == 'c' then
    value = text(used[i])
    if expiry then value = value .. ' ' .. text(expiry) end
    till = seconds[i] + DAY
  else
    value = pack('<dd', used[i], now)
    if expiry then value = value .. pack('<d', expiry) end
    till = now + DAY
    if limits[i] > 0 then till = now + min(3660 * DAY, ceil(used[i] * seconds[i] / limits[i]) + 1000) end
  end
  call('SET', keys[i], value, 'PXAT', text(till))
end

local function charge(i, units) used[i] = min(MAX_UNITS, used[i] + units) end

local function capacity(i) return kinds[i] == 'g' and firsts[i] or limits[i] end

-- Only levels are rounded: rounding must not deny at the very instant that a denial named.
local function tolerance(i) return kinds[i] == 'g' and min(1e-3, 1e-9 + firsts[i] * 4e-16) or 0 end

local function freeOf(i) return max(0, floor(capacity(i) - used[i] + tolerance(i))) end

local function resetMs(i)
  if kinds[i] == 'c' then return seconds[i] - now end
  if used[i] == 0 then return 0 end
  if kinds[i] == 'g' then return limits[i] == 0 and seconds[i] or ceil(used[i] * seconds[i] / limits[i]) end
  local first = call('ZRANGE', keys[i], 0, 0, 'WITHSCORES')
  return first[2] and max(0, tonumber(first[2]) - now) or 0
end

local function retryMs(i, need)
  if need == 0 or freeOf(i) >= need then return 0 end
  if need > capacity(i) then return -1 end
  if kinds[i] == 'c' then return seconds[i] - now end
  if kinds[i] == 'n' then return max(1, min(1000, resetMs(i))) end
  if limits[i] == 0 then return -1 end
  return max(1, ceil((used[i] + need - firsts[i]) * seconds[i] / limits[i]))
end

-- Clients read long integers by adding digits up, which rounds.
local function exact(number) return number > 1e15 and text(number) or number end

local function answer(allowed, granted)
  local result = { allowed and 1 or 0, now }
  for i = 1, count do
    local units = granted and granted[i]
    local need = 0
    if not units or (units == 0 and not allowed) then need = needs[i] end
    local shown = used[i]
    if kinds[i] == 'g' then shown = max(0, ceil(shown - tolerance(i))) end
    local at = 2 + (i - 1) * 4
    result[at + 1], result[at + 2], result[at + 3], result[at + 4] = exact(units or 0), exact(shown), resetMs(i), retryMs(i, need)
  end
  return result
end

local function outside()
  for i = 1, count do
    if kinds[i] == 'c' and (now < firsts[i] or now >= seconds[i]) then return true end
  end
  return false
end

local function take()
  local holdMs, share = tonumber(ARGV[4]), tonumber(ARGV[5])
  parse(ARGV, HEAD, tonumber(ARGV[6]))
  if outside() then return { -1, now } end
  local raws = count > 0 and call('MGET', unpack(keys)) or {}
  local allowed = true
  for i = 1, count do
    load(i, raws[i])
    if needs[i] > 0 and freeOf(i) < needs[i] then allowed = false end
  end
  local holdKey = id ~= '' and (slot .. ':h:' .. id)
  local known = holdKey and call('HGET', holdKey, 'g')
  local granted = known and listOf(known)
  if granted then allowed = true end
  if not granted and mode ~= 'peek' and (mode ~= 'all' or allowed) then
    granted = {}
    local latest, any = now + holdMs, false
    for i = 1, count do
      local units = costs[i]
      if mode == 'upTo' then
        local free = freeOf(i)
        units = free < needs[i] and 0 or min(free, units, max(needs[i], floor(free / share)))
      end
      granted[i] = units
      if units > 0 then
        any = true
        charge(i, units)
        if kinds[i] == 'n' then
          latest = max(latest, now + firsts[i])
          call('ZADD', keys[i], text(now + firsts[i]), text(units) .. ':' .. id)
          local last = call('ZRANGE', keys[i], -1, -1, 'WITHSCORES')
          call('PEXPIREAT', keys[i], text(tonumber(last[2]) + 1000))
        else
          dirty[i] = true
          if reserved[i] and mode ~= 'upTo' then
            local held = keys[i] .. ':r'
            call('ZADD', held, text(now + holdMs), text(units) .. ':' .. text(now) .. ':' .. id)
            local last = call('ZRANGE', held, -1, -1, 'WITHSCORES')
            call('PEXPIREAT', held, text(tonumber(last[2]) + DAY))
            expiries[i] = min(expiries[i] or math.huge, now + holdMs)
          end
        end
      end
    end
    if holdKey and (mode ~= 'upTo' or any) then
      local units = {}
      for i = 1, count do units[i] = text(granted[i]) end
      call('HSET', holdKey, 'g', table.concat(units, ','), 't', text(now), 'n', count, 'm', mode,
        'o', table.concat(ARGV, '\\n', HEAD + 1, HEAD + count * WIDTH))
      call('PEXPIREAT', holdKey, text(latest + DAY))
    end
    if mode == 'force' then allowed = true end
  end
  for i = 1, count do
    if dirty[i] then save(i) end
  end
  return answer(allowed, granted)
end

-- Books the difference between what was charged and what was used, on the window in which it was charged.
local function settleOp(i, charged, actual, takenMs)
  if kinds[i] == 'c' and now >= seconds[i] then return end
  local raw = call('GET', keys[i])
  if not raw and (kinds[i] == 'c' or actual <= charged) then return end
  load(i, raw)
  if actual > charged then charge(i, actual - charged) else giveBack(i, charged - actual, charged, takenMs) end
  save(i)
end

local function settle()
  local actual = listOf(ARGV[7])
  if id == '' then
    parse(ARGV, HEAD, tonumber(ARGV[6]))
    local granted, takenMs = listOf(ARGV[8]), tonumber(ARGV[9])
    for i = 1, count do
      local units = actual[i] or granted[i]
      if granted[i] > 0 and units ~= granted[i] then settleOp(i, granted[i], units, takenMs) end
    end
    return {}
  end
  local holdKey = slot .. ':h:' .. id
  local hold = call('HMGET', holdKey, 'g', 't', 'n', 'o', 'm', 'd')
  if not hold[1] or hold[6] then return {} end
  call('HSET', holdKey, 'd', '1')
  call('PEXPIREAT', holdKey, text(now + 60000))
  local source = {}
  for part in string.gmatch(hold[4] .. '\\n', '(.-)\\n') do source[#source + 1] = part end
  parse(source, 0, tonumber(hold[3]))
  local granted, takenMs = listOf(hold[1]), tonumber(hold[2])
  for i = 1, count do
    local charged = granted[i]
    local units = actual[i] or charged
    if charged > 0 then
      if kinds[i] == 'n' then
        call('ZREM', keys[i], text(charged) .. ':' .. id)
      else
        if reserved[i] and hold[5] ~= 'upTo' then
          -- Swept already: it was given back when it expired.
          local removed = call('ZREM', keys[i] .. ':r', text(charged) .. ':' .. text(takenMs) .. ':' .. id)
          if removed == 0 then charged = 0 end
        end
        settleOp(i, charged, units, takenMs)
      end
    end
  end
  return {}
end

if command == 'take' then return take() end
if command == 'settle' then return settle() end
parse(ARGV, HEAD, tonumber(ARGV[6]))
if outside() then return { -1, now } end
for i = 1, count do call('DEL', keys[i], keys[i] .. ':r') end
return { 1, now }
`;
