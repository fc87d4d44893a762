/**
 * Everything that the quota store does, in one script: the clock is Redis's own, every op is checked before any is charged,
 * and every key that it makes has a time to live.
 *
 * KEYS[1] is the slot, `<prefix>:{<hash>}`; all other keys begin with it, so that they live on the same node of a cluster.
 * ARGV[1] is JSON: `{ c: command, i: id, h: holdMs, s: share, m: mode, a: actual, g: granted, t: takenMs }`; ARGV[2] is the list of ops,
 * as JSON too. An op is `{ k: key, w: kind, l: limit,
 * n: need, c: cost, r: reserved, b: capacity, p: periodMs, t: ttlMs, v: windows }`; `v` are the windows around the client's idea
 * of the time, `[[startMs, endMs], …]`: the one that holds Redis's time counts. With none of them the answer is
 * `['window', nowMs]` and nothing has changed.
 *
 * Counters: gcra is a hash of a level and the instant of its last draining; calendar an integer per window; concurrent a
 * sorted set of ids by expiry. A reservation also lies in a sorted set beside its counter, by expiry; a hold is a hash.
 */
export const QUOTA_SCRIPT = `
local slot = KEYS[1]
local args = cjson.decode(ARGV[1])
args.o = cjson.decode(ARGV[2])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local DAY = 86400000
local function text(number) return string.format('%.0f', number) end
-- Lists of integers as text: cjson would keep only 14 digits.
local function pack(list)
  local parts = {}
  for index, number in ipairs(list) do parts[index] = text(number) end
  return table.concat(parts, ',')
end
local function unpackList(packed)
  local list = {}
  for part in string.gmatch(packed, '[^,]+') do list[#list + 1] = tonumber(part) end
  return list
end

local function windowOf(op)
  for _, window in ipairs(op.v) do
    if now >= window[1] and now < window[2] then return window end
  end
  return nil
end

local function keyOf(op, startMs)
  if op.w == 'calendar' then return slot .. ':' .. op.k .. ':' .. text(startMs) end
  return slot .. ':' .. op.k
end

-- Gives back what expired reservations hold. What a level has drained since is free already.
local function giveBack(op, used, units, charged, takenMs)
  local left = units
  if op.w == 'gcra' then left = charged - math.max(0, now - takenMs) * op.l / op.p end
  return math.max(0, used - math.max(0, math.min(units, left)))
end

local function sweep(op, state)
  local held = state.key .. ':r'
  local expired = redis.call('ZRANGEBYSCORE', held, '-inf', text(now), 'LIMIT', 0, 1000)
  for _, member in ipairs(expired) do
    local units, takenMs = string.match(member, '^(%d+):(%d+):')
    state.used = giveBack(op, state.used, tonumber(units), tonumber(units), tonumber(takenMs))
    state.dirty = true
    redis.call('ZREM', held, member)
  end
end

local function load(op)
  local state = { used = 0, dirty = false }
  if op.w == 'calendar' then
    state.window = windowOf(op)
    if not state.window then return nil end
    state.key = keyOf(op, state.window[1])
    state.used = tonumber(redis.call('GET', state.key) or '0')
    sweep(op, state)
  elseif op.w == 'gcra' then
    state.key = keyOf(op)
    local found = redis.call('HMGET', state.key, 'l', 't')
    if found[1] then
      local elapsed = math.max(0, now - tonumber(found[2]))
      state.used = math.max(0, tonumber(found[1]) - elapsed * op.l / op.p)
    end
    sweep(op, state)
  else
    state.key = keyOf(op)
    redis.call('ZREMRANGEBYSCORE', state.key, '-inf', text(now))
    for _, member in ipairs(redis.call('ZRANGE', state.key, 0, -1)) do
      state.used = state.used + tonumber(string.match(member, '^(%d+):'))
    end
  end
  return state
end

local function save(op, state)
  if op.w == 'calendar' then
    redis.call('SET', state.key, text(state.used), 'PXAT', text(state.window[2] + DAY))
  elseif op.w == 'gcra' then
    local rate = op.l / op.p
    local drained = now + DAY
    if rate > 0 then drained = now + math.min(10 * 366 * DAY, math.ceil(state.used / rate) + 1000) end
    redis.call('HSET', state.key, 'l', string.format('%.17g', state.used), 't', text(now))
    redis.call('PEXPIREAT', state.key, text(drained))
  end
end

-- Only levels are rounded.
local function tolerance(op) return math.min(1e-3, 1e-9 + op.b * 4e-16) end
local function freeOf(op, used)
  if op.w ~= 'gcra' then return math.max(0, op.b - used) end
  return math.max(0, math.floor(op.b - used + tolerance(op)))
end

local function resetMs(op, state)
  if op.w == 'calendar' then return state.window[2] - now end
  if state.used == 0 then return 0 end
  if op.w == 'concurrent' then
    local first = redis.call('ZRANGE', state.key, 0, 0, 'WITHSCORES')
    if not first[2] then return 0 end
    return math.max(0, tonumber(first[2]) - now)
  end
  if op.l == 0 then return op.p end
  return math.ceil(state.used * op.p / op.l)
end

local function retryMs(op, state, need)
  if need == 0 or freeOf(op, state.used) >= need then return '0' end
  if need > op.b then return '' end
  if op.w == 'calendar' then return text(state.window[2] - now) end
  if op.w == 'concurrent' then return text(math.max(1, math.min(1000, resetMs(op, state)))) end
  if op.l == 0 then return '' end
  return text(math.max(1, math.ceil((state.used + need - op.b) * op.p / op.l)))
end

local function answer(ops, states, allowed, granted)
  local result = { allowed and '1' or '0', text(now) }
  for index, op in ipairs(ops) do
    local state = states[index]
    local units = granted and granted[index]
    local need = 0
    if not units or (units == 0 and not allowed) then need = op.n end
    local used = state.used
    if op.w == 'gcra' then used = math.max(0, math.ceil(used - tolerance(op))) end
    result[#result + 1] = text(units or 0)
    result[#result + 1] = text(used)
    result[#result + 1] = text(resetMs(op, state))
    result[#result + 1] = retryMs(op, state, need)
  end
  return result
end

local function take(ops)
  local states = {}
  for index, op in ipairs(ops) do
    local state = load(op)
    if not state then return { 'window', text(now) } end
    states[index] = state
  end
  local holdKey = args.i and (slot .. ':h:' .. args.i)
  if holdKey then
    local known = redis.call('HGET', holdKey, 'g')
    if known then return answer(ops, states, true, unpackList(known)) end
  end
  local allowed = true
  for index, op in ipairs(ops) do
    if op.n > 0 and freeOf(op, states[index].used) < op.n then allowed = false end
  end
  local granted = nil
  if args.m ~= 'peek' and (args.m ~= 'all' or allowed) then
    granted = {}
    local any = false
    for index, op in ipairs(ops) do
      local units = op.c
      if args.m == 'upTo' then
        local free = freeOf(op, states[index].used)
        if free < op.n then units = 0
        else units = math.min(free, op.c, math.max(op.n, math.floor(free / args.s))) end
      end
      granted[index] = units
      if units > 0 then any = true end
    end
    local latest = now + args.h
    for index, op in ipairs(ops) do
      local state, units = states[index], granted[index]
      if units > 0 then
        if op.w == 'concurrent' then
          local expires = now + op.t
          latest = math.max(latest, expires)
          redis.call('ZADD', state.key, text(expires), text(units) .. ':' .. args.i)
          local last = redis.call('ZRANGE', state.key, -1, -1, 'WITHSCORES')
          redis.call('PEXPIREAT', state.key, text(tonumber(last[2]) + 1000))
          state.used = state.used + units
        else
          state.used = state.used + units
          state.dirty = true
          if op.r and args.m ~= 'upTo' then
            local held = state.key .. ':r'
            redis.call('ZADD', held, text(now + args.h), text(units) .. ':' .. text(now) .. ':' .. args.i)
            local last = redis.call('ZRANGE', held, -1, -1, 'WITHSCORES')
            redis.call('PEXPIREAT', held, text(tonumber(last[2]) + DAY))
          end
        end
      end
    end
    if holdKey and (args.m ~= 'upTo' or any) then
      local starts = {}
      for index, state in ipairs(states) do starts[index] = state.window and state.window[1] or 0 end
      redis.call('HSET', holdKey, 'g', pack(granted), 't', text(now), 'o', ARGV[2], 's', pack(starts))
      redis.call('PEXPIREAT', holdKey, text(latest + DAY))
    end
  end
  for index, op in ipairs(ops) do
    if states[index].dirty then save(op, states[index]) end
  end
  return answer(ops, states, allowed or args.m == 'force', granted)
end

-- Books the difference between what was charged and what was used, on the window in which it was charged.
local function settleOp(op, startMs, granted, charged, actual, takenMs)
  if op.w == 'calendar' then
    local window = windowOf(op)
    if not window or window[1] ~= startMs then return end
    local key = keyOf(op, startMs)
    local found = redis.call('GET', key)
    if not found then return end
    local used = math.max(0, tonumber(found) + actual - charged)
    redis.call('SET', key, text(used), 'PXAT', text(window[2] + DAY))
  elseif op.w == 'gcra' then
    local state = load(op)
    if actual > charged then state.used = state.used + actual - charged
    elseif actual < charged then state.used = giveBack(op, state.used, charged - actual, charged, takenMs) end
    if actual ~= charged and (state.used > 0 or redis.call('EXISTS', state.key) == 1) then save(op, state) end
  end
end

local function settle()
  if args.i then
    local holdKey = slot .. ':h:' .. args.i
    local hold = redis.call('HMGET', holdKey, 'g', 't', 'o', 's', 'd')
    if not hold[1] or hold[5] then return {} end
    redis.call('HSET', holdKey, 'd', '1')
    redis.call('PEXPIREAT', holdKey, text(now + 60000))
    local granted, takenMs, starts = unpackList(hold[1]), tonumber(hold[2]), unpackList(hold[4])
    for index, op in ipairs(cjson.decode(hold[3])) do
      local units = granted[index]
      if units > 0 then
        local key = keyOf(op, starts[index])
        if op.w == 'concurrent' then
          redis.call('ZREM', key, text(units) .. ':' .. args.i)
        else
          local charged = units
          if op.r then
            -- Swept already: it was given back when it expired.
            local removed = redis.call('ZREM', key .. ':r', text(units) .. ':' .. text(takenMs) .. ':' .. args.i)
            if removed == 0 then charged = 0 end
          end
          settleOp(op, starts[index], units, charged, args.a[index] or units, takenMs)
        end
      end
    end
    return {}
  end
  for index, op in ipairs(args.o) do
    local granted = args.g[index]
    local actual = args.a[index] or granted
    if granted > 0 and actual ~= granted then
      local startMs = 0
      if op.w == 'calendar' then
        for _, window in ipairs(op.v) do
          if args.t >= window[1] and args.t < window[2] then startMs = window[1] end
        end
      end
      settleOp(op, startMs, granted, granted, actual, args.t)
    end
  end
  return {}
end

if args.c == 'take' then return take(args.o) end
if args.c == 'settle' then return settle() end
for _, op in ipairs(args.o) do
  if op.w == 'calendar' then
    local window = windowOf(op)
    if not window then return { 'window', text(now) } end
    redis.call('DEL', keyOf(op, window[1]), keyOf(op, window[1]) .. ':r')
  else
    redis.call('DEL', keyOf(op), keyOf(op) .. ':r')
  end
end
return {}
`;
