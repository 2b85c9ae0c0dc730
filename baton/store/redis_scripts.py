"""What runs inside Redis: the Lua of the store for several routers, and the keys it works on.

A script is the one thing that Redis runs as a whole, so that whatever checks before it changes is
one. Each of them writes, even one that only reads: it forgets what has expired, and by that a
Redis that has become a replica refuses it, instead of telling an old story.

Workers and routers are kept alike, in a sorted set of expiry times (milliseconds of Redis's own
clock), a hash of records, and a sorted set of the numbers of their last changes. There is one count
of changes for both. Where it stood when the last one left stands in the hash ``meta``; who looked
before that has to read all of them, everybody else only what has a higher number than he knows.

Cordons, roles and documents carry a stamp of their last writer's making. A number would do until a
failover loses a change and the next one gets the same number.
"""

from __future__ import annotations

PREFIX = "baton:{workers}:"
"""Before every key, so that a Redis can be shared; the braces keep all in one slot of a Redis
Cluster, where a script needs them."""

KEYS = tuple(
    PREFIX + name
    for name in (
        "expiry",
        "records",
        "cordoned",
        "assigned",
        "changes",
        "routers:expiry",
        "routers:records",
        "routers:changes",
        "meta",
        "documents",
    )
)
"""Every script gets all of them, in this order."""

_NAMES = """
local cordoned, assigned, meta, documents = KEYS[3], KEYS[4], KEYS[9], KEYS[10]
local workers = {expiry = KEYS[1], records = KEYS[2], changes = KEYS[5], left = 'workers_left'}
local routers = {expiry = KEYS[6], records = KEYS[7], changes = KEYS[8], left = 'routers_left'}

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local function count()
  return redis.call('HINCRBY', meta, 'changes', 1)
end

local function purge(of)
  local gone = redis.call('ZRANGEBYSCORE', of.expiry, '-inf', now_ms)
  for _, id in ipairs(gone) do
    redis.call('HDEL', of.records, id)
    redis.call('ZREM', of.changes, id)
  end
  redis.call('ZREMRANGEBYSCORE', of.expiry, '-inf', now_ms)
  if #gone > 0 then
    redis.call('HSET', meta, of.left, count())
  end
end

-- ARGV: id, record, ttl in ms, bound. Answers 1, or 0 for a new one at the bound.
local function put(of)
  purge(of)
  local id, record = ARGV[1], ARGV[2]
  local known = redis.call('ZSCORE', of.expiry, id)
  if not known and redis.call('ZCARD', of.expiry) >= tonumber(ARGV[4]) then
    return 0
  end
  redis.call('ZADD', of.expiry, now_ms + tonumber(ARGV[3]), id)
  if not (known and redis.call('HGET', of.records, id) == record) then
    redis.call('HSET', of.records, id, record)
    redis.call('ZADD', of.changes, count(), id)
  end
  return 1
end

local function remove(of, id)
  redis.call('ZREM', of.changes, id)
  redis.call('HDEL', of.records, id)
  if redis.call('ZREM', of.expiry, id) == 1 then
    redis.call('HSET', meta, of.left, count())
  end
end

local function stamp(name, changed, value)
  if changed > 0 then
    redis.call('HSET', meta, name, value)
  end
end

-- Ids and records as two texts, lengths and contents: a thousand answers cost the reader more.
-- Of a record that is lost the length is -1.
local function packed(of, ids)
  local lengths, parts = {}, {}
  for first = 1, #ids, 1000 do
    local last = math.min(first + 999, #ids)
    local found = redis.call('HMGET', of.records, unpack(ids, first, last))
    for at, record in ipairs(found) do
      local id = ids[first + at - 1]
      lengths[#lengths + 1] = #id
      lengths[#lengths + 1] = record and #record or -1
      parts[#parts + 1] = id
      parts[#parts + 1] = record or ''
    end
  end
  return {table.concat(lengths, ' '), table.concat(parts)}
end
"""

PUT_WORKER = _NAMES + "return put(workers)"
PUT_ROUTER = _NAMES + "return put(routers)"

# ARGV: id, stamp.
REMOVE_WORKER = (
    _NAMES
    + """
purge(workers)
remove(workers, ARGV[1])
stamp('cordoned', redis.call('SREM', cordoned, ARGV[1]), ARGV[2])
stamp('assigned', redis.call('HDEL', assigned, ARGV[1]), ARGV[2])
return 1
"""
)

# ARGV: id.
REMOVE_ROUTER = _NAMES + "purge(routers) remove(routers, ARGV[1]) return 1"

LIST = _NAMES + "purge(workers) return packed(workers, redis.call('ZRANGE', workers.expiry, 0, -1))"

# ARGV: id, bound, stamp. Answers 1, or 0 for a new one at the bound.
CORDON = (
    _NAMES
    + """
purge(workers)
if redis.call('SISMEMBER', cordoned, ARGV[1]) == 0
    and redis.call('SCARD', cordoned) >= tonumber(ARGV[2]) then
  return 0
end
stamp('cordoned', redis.call('SADD', cordoned, ARGV[1]), ARGV[3])
return 1
"""
)

# ARGV: id, stamp.
UNCORDON = (
    _NAMES
    + """
purge(workers)
stamp('cordoned', redis.call('SREM', cordoned, ARGV[1]), ARGV[2])
return 1
"""
)

CORDONED = _NAMES + "purge(workers) return redis.call('SMEMBERS', cordoned)"

# ARGV: id, role or nothing, bound, stamp. Answers 1, or 0 for a new one at the bound.
ASSIGN = (
    _NAMES
    + """
purge(workers)
local known = redis.call('HGET', assigned, ARGV[1])
if ARGV[2] == '' then
  stamp('assigned', redis.call('HDEL', assigned, ARGV[1]), ARGV[4])
elseif not known and redis.call('HLEN', assigned) >= tonumber(ARGV[3]) then
  return 0
elseif known ~= ARGV[2] then
  redis.call('HSET', assigned, ARGV[1], ARGV[2])
  stamp('assigned', 1, ARGV[4])
end
return 1
"""
)

# ARGV: name. Answers revision and value, or nothing twice.
DOCUMENT = (
    _NAMES
    + """
purge(workers)
return redis.call('HMGET', documents, ARGV[1] .. ':revision', ARGV[1] .. ':value')
"""
)

# ARGV: name, expected revision, value, stamp. Answers the new revision, or 0. Who asks again with
# the same stamp, because the answer was lost on its way, hears what it was.
SWAP = (
    _NAMES
    + """
purge(workers)
local name, revision = ARGV[1], tonumber(ARGV[2])
local found = redis.call('HMGET', documents, name .. ':revision', name .. ':stamp')
local stands = tonumber(found[1] or 0)
if stands == revision + 1 and found[2] == ARGV[4] then
  return stands
elseif stands ~= revision then
  return 0
end
redis.call('HSET', documents, name .. ':revision', string.format('%d', revision + 1),
  name .. ':stamp', ARGV[4], name .. ':value', ARGV[3])
return revision + 1
"""
)

# ARGV: an epoch if there is none, and what the caller knows: epoch, changes, stamps of cordons,
# roles and the document; and the document's name.
# Answers: epoch, changes; twice whether it is all of them, how many there are, and the records,
# packed; three times stamp and content, which is nothing where the stamp is known.
LOOK = (
    _NAMES
    + """
purge(workers)
purge(routers)
redis.call('HSETNX', meta, 'epoch', ARGV[1])
local found = redis.call('HMGET', meta, 'epoch', 'changes', 'cordoned', 'assigned')
local epoch, changes = found[1], tonumber(found[2] or 0)
local known = tonumber(ARGV[3])
local strange = epoch ~= ARGV[2] or changes < known

local function since(of)
  local alive = redis.call('ZCARD', of.expiry)
  local left = tonumber(redis.call('HGET', meta, of.left) or 0)
  if strange or left > known or redis.call('ZCARD', of.changes) ~= alive then
    -- Somebody of another version may have written or removed without counting.
    redis.call('ZINTERSTORE', of.changes, 2, of.changes, of.expiry, 'WEIGHTS', 1, 0)
    return {1, alive, packed(of, redis.call('ZRANGE', of.expiry, 0, -1))}
  end
  local ids = redis.call('ZRANGEBYSCORE', of.changes, '(' .. ARGV[3], '+inf')
  return {0, alive, packed(of, ids)}
end

local function unless_known(stands, told, command, ...)
  stands = stands or ''
  if not strange and stands == told then
    return {stands, false}
  end
  return {stands, redis.call(command, ...)}
end

local name = ARGV[7]
return {
  epoch, changes, since(workers), since(routers),
  unless_known(found[3], ARGV[4], 'SMEMBERS', cordoned),
  unless_known(found[4], ARGV[5], 'HGETALL', assigned),
  unless_known(redis.call('HGET', documents, name .. ':stamp'), ARGV[6],
    'HMGET', documents, name .. ':revision', name .. ':value'),
}
"""
)
