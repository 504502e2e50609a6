#!lua name=copyrisk_v1
--[[
The atomic changes of copyrisk. `store/library.py` loads this file, `store/functions.py` holds the arguments of most functions; the
fields in <<...>> are put in from `fields.py`, so that they are spelled once.

T:U is an account, O an order, S a symbol. No function touches a key outside the slot of its first key, and none does
arithmetic on money: what is booked was computed in decimal by the caller, and replaces what the caller read.

  copyrisk_read      (read only) everything of an account that a decision needs, in one moment
     KEYS  user:{T:U}:config, user_orders_index:{T:U}, copyrisk:{T:U}:ledger, copyrisk:{T:U}:outbox,
           user_holdings:{T:U}:O, copyrisk:{T:U}:order:O, copyrisk:{T:U}:answer:K
     also reads user_holdings:{T:U}:<each id in the index>, and if asked copyrisk:{T:U}:order:<each id in the index>
  copyrisk_change    one change of an account, or none of it
     KEYS  user:{T:U}:config, user_orders_index:{T:U}, copyrisk:{T:U}:ledger, user_holdings:{T:U}:O,
           copyrisk:{T:U}:order:O, copyrisk:{T:U}:answer:K, copyrisk:{T:U}:audit, copyrisk:{T:U}:outbox
  copyrisk_copy      a copy of a master's order in a follower's account, or none of it; its audit entry and what follows
                     from it in other slots stand in the record of the decision, which is stored before
     KEYS  user:{T:U}:config, user_orders_index:{T:U}, copyrisk:{T:U}:ledger, user_holdings:{T:U}:O,
           copyrisk:{T:U}:order:O, copyrisk:{T:U}:remainders
  copyrisk_protect   the negative balance of an account without orders booked away, or nothing
     KEYS  user:{T:U}:config, user_orders_index:{T:U}, copyrisk:{T:U}:ledger, copyrisk:{T:U}:audit, copyrisk:{T:U}:outbox
  copyrisk_note      a refusal, or a report that changed nothing: its answer and audit entry
     KEYS  copyrisk:{T:U}:answer:K, copyrisk:{T:U}:audit
  copyrisk_claim     an order id for an account
     KEYS  order_data:O
  copyrisk_put       a hash as of a version, unless a later version is there
     KEYS  order_data:O  or  order_triggers:O
  copyrisk_hold      accounts in or out of a symbol's holders, each as of a version
     KEYS  symbol_holders:S:T, copyrisk:{symbol_holders:S:T}
  copyrisk_ask       an entry of a stream, unless the request for it was made before
     KEYS  copyrisk:api:nonce:{copyrisk:commands}:KEY:NONCE, copyrisk:commands
  copyrisk_lease     the right of one process to act, for a while
     KEYS  copyrisk:{ROLE}:lease
  copyrisk_trail     entries of the house's audit trail, if it ends where the caller's chain begins
     KEYS  copyrisk:{audit}:trail, copyrisk:{audit}:head, copyrisk:{audit}:aside:NAME
  copyrisk_episodes  warning episodes that began, went on or ended, and the notices that clients get of them
     KEYS  copyrisk:{cutoff}:lease, copyrisk:{cutoff}:episodes, copyrisk:{cutoff}:notices
  copyrisk_kill      a kill set, replaced or taken away, if what stands there is what the caller read
     KEYS  copyrisk:kills
  copyrisk_cascade_begin, copyrisk_cascade_note, copyrisk_cascade_end
                     a cascade with its frozen followers; where some of them stand; its end
     KEYS  copyrisk:{cutoff}:lease, copyrisk:{cutoff}:cascades, copyrisk:{cutoff}:cascade:ID,
           copyrisk:{cutoff}:cascades_done
     the first also looks whether copyrisk:{cutoff}:cascade:<the one that runs> is there
  copyrisk_cascade_forget
                     a cascade whose record is gone is not running any more
     KEYS  copyrisk:{cutoff}:lease, copyrisk:{cutoff}:cascades
  copyrisk_fill      a hash where there is none
     KEYS  user:{T:U}:config  or  groups:{G}:S
  copyrisk_notice_begin, copyrisk_notice_end
                     the right to take a warning to its client by one sink, and what came of it
     KEYS  copyrisk:{cutoff}:notice:ID
]]

local CONFIG_FIELDS = { <<config_fields>> }
local ORDER_FIELDS = { <<order_fields>> }
local READ_LIMIT = 5000
local LEASE_LIMIT_MS = 60000 -- the settings allow no longer one

-- A number as tokens and times are written, else nil: whatever else stands there says nothing, and fails nobody.
local function token_of(text)
  return text and #text <= 15 and string.find(text, '^%d+$') and tonumber(text)
end

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Whether a record (`records.record_text`) says that the order is being closed or taken back.
local function is_ending(record)
  return record and (string.find(record, '"state":"closing"', 1, true) or string.find(record, '"state":"cancelling"', 1, true))
end

-- args: 1 how keys of orders begin, 2 how keys of their records begin ('': which orders are being closed is not asked)
local function read(keys, args)
  local ids = redis.call('SMEMBERS', keys[2])
  if #ids > READ_LIMIT then
    return redis.error_reply('TOOMANY the account has ' .. #ids .. ' orders')
  end
  local orders, ending = {}, {}
  for i, id in ipairs(ids) do
    orders[i] = redis.call('HMGET', args[1] .. id, unpack(ORDER_FIELDS))
    local record = args[2] ~= '' and redis.call('GET', args[2] .. id)
    if is_ending(record) then
      ending[#ending + 1], ending[#ending + 2] = id, record
    end
  end
  return {
    now_ms(),
    redis.call('HMGET', keys[3], 'version', 'reserved_usd', 'booked_usd'),
    redis.call('XLEN', keys[4]),
    redis.call('HMGET', keys[1], unpack(CONFIG_FIELDS)),
    ids,
    orders,
    redis.call('HGETALL', keys[5]),
    redis.call('GET', keys[6]),
    redis.call('GET', keys[7]),
    ending,
  }
end

-- What stands in a hash, '' for nothing.
local function stands(key, field)
  return redis.call('HGET', key, field) or ''
end

local function is_as_read(keys, args)
  return stands(keys[3], 'version') == args[3]
    and stands(keys[1], 'wallet_balance') == args[4]
    and stands(keys[1], 'leverage') == args[5]
    and stands(keys[1], 'group') == args[6]
    and redis.call('SCARD', keys[2]) == tonumber(args[7])
    and stands(keys[4], 'order_status') == args[8]
    and stands(keys[4], 'execution_status') == args[9]
end

-- The token in this field of the ledger if it is above that of who asks; nothing without a field.
local function fenced_by(ledger, field, token)
  local fence = token_of(field ~= '' and redis.call('HGET', ledger, field))
  return fence and fence > tonumber(token) and string.format('%.0f', fence)
end

-- args: 1 order id, 2 deadline (ms of this server's clock), 3 to 9 what was read, 10 new version, 11 new balance ('':
-- as it is), 12 new reserved_usd, 13 record, 14 ms to keep it ('': as long as the order), 15 answer ('': none), 16 ms to
-- keep it, 17 audit entry, 18 outbox entry, 19 'put' or 'finish', 20 new booked_usd, 21 the field of the ledger
-- with the fencing token of who asks ('': whoever it is), 22 that token, 23 how many words to set in the order's hash,
-- those words, then fields to delete from it
local function change(keys, args)
  local answered = args[15] ~= '' and redis.call('GET', keys[6])
  if answered then
    return { 'repeated', answered }
  end
  if not is_as_read(keys, args) then
    return { 'changed' }
  end
  if now_ms() > tonumber(args[2]) then
    return { 'late' }
  end
  local fence = fenced_by(keys[3], args[21], args[22])
  if fence then
    return { 'fenced', fence }
  end
  -- Keys of a wrong type fail here, before anything is written; the others have been read above.
  redis.call('XLEN', keys[7])
  redis.call('XLEN', keys[8])
  redis.call('HSET', keys[3], 'version', args[10], 'reserved_usd', args[12], 'booked_usd', args[20])
  if args[21] ~= '' then
    redis.call('HSET', keys[3], args[21], args[22])
  end
  if args[11] ~= '' then
    redis.call('HSET', keys[1], 'wallet_balance', args[11])
  end
  if args[19] == 'finish' then
    redis.call('DEL', keys[4])
    redis.call('SREM', keys[2], args[1])
  else
    local first_deleted = 24 + tonumber(args[23])
    redis.call('HSET', keys[4], unpack(args, 24, first_deleted - 1))
    if args[first_deleted] then
      redis.call('HDEL', keys[4], unpack(args, first_deleted))
    end
    redis.call('SADD', keys[2], args[1])
  end
  if args[14] == '' then
    redis.call('SET', keys[5], args[13])
  else
    redis.call('SET', keys[5], args[13], 'PX', args[14])
  end
  if args[15] ~= '' then
    redis.call('SET', keys[6], args[15], 'PX', args[16])
  end
  redis.call('XADD', keys[7], '*', 'entry', args[17])
  return { 'done', redis.call('XADD', keys[8], '*', 'entry', args[18]) }
end

-- args: 1 order id, 2 deadline (ms of this server's clock), 3 version, 4 balance, 5 leverage, 6 group, 7 copy_status,
-- 8 number of orders, all as they were read (balance and leverage as numbers), 9 new version, 10 record, 11 what rounding
-- took from the copy ('': not kept), then the words of the order's hash
local function copy(keys, args)
  if redis.call('EXISTS', keys[4], keys[5]) > 0 then
    return { 'exists' }
  end
  local config = redis.call('HMGET', keys[1], 'wallet_balance', 'leverage', 'group', 'copy_status')
  if stands(keys[3], 'version') ~= args[3]
    or tonumber(config[1] or '') ~= tonumber(args[4])
    or tonumber(config[2] or '') ~= tonumber(args[5])
    or (config[3] or '<<standard_group>>') ~= args[6]
    or (config[4] or '') ~= args[7]
    or redis.call('SCARD', keys[2]) ~= tonumber(args[8]) then
    return { 'changed' }
  end
  if now_ms() > tonumber(args[2]) then
    return { 'late' }
  end
  if args[11] ~= '' then
    redis.call('HSET', keys[6], args[1], args[11])
  end
  redis.call('HSET', keys[3], 'version', args[9])
  redis.call('HSET', keys[4], unpack(args, 12))
  redis.call('SADD', keys[2], args[1])
  redis.call('SET', keys[5], args[10])
  return { 'done' }
end

-- args: 1 deadline (ms of this server's clock), 2 version, 3 balance, 4 reserved_usd as they were read, 5 new version,
-- 6 new balance, 7 new protected_usd, 8 audit entry, 9 outbox entry, 10 the field of the ledger with the fencing token of
-- who asks, 11 that token. It has no orders at all, nor had it any when it was read.
local function protect(keys, args)
  if stands(keys[3], 'version') ~= args[2]
    or stands(keys[1], 'wallet_balance') ~= args[3]
    or stands(keys[3], 'reserved_usd') ~= args[4]
    or redis.call('SCARD', keys[2]) > 0 then
    return { 'changed' }
  end
  if now_ms() > tonumber(args[1]) then
    return { 'late' }
  end
  local fence = fenced_by(keys[3], args[10], args[11])
  if fence then
    return { 'fenced', fence }
  end
  redis.call('XLEN', keys[4])
  redis.call('XLEN', keys[5]) -- keys of a wrong type fail here, before anything is written
  redis.call('HSET', keys[3], 'version', args[5], 'protected_usd', args[7], args[10], args[11])
  redis.call('HSET', keys[1], 'wallet_balance', args[6])
  redis.call('XADD', keys[4], '*', 'entry', args[8])
  return { 'done', redis.call('XADD', keys[5], '*', 'entry', args[9]) }
end

-- args: 1 answer ('': none), 2 ms to keep it, 3 audit entry
local function note(keys, args)
  if args[1] ~= '' then
    local answered = redis.call('GET', keys[1])
    if answered then
      return { 'repeated', answered }
    end
    redis.call('XLEN', keys[2])
    redis.call('SET', keys[1], args[1], 'PX', args[2])
  end
  redis.call('XADD', keys[2], '*', 'entry', args[3])
  return { 'done' }
end

-- args: 1 account type, 2 account id, 3 ms that the claim holds if no order follows
local function claim(keys, args)
  if redis.call('EXISTS', keys[1]) == 0 then
    redis.call('HSET', keys[1], 'user_type', args[1], 'user_id', args[2])
    redis.call('PEXPIRE', keys[1], args[3])
    return 'claimed'
  end
  local owner = redis.call('HMGET', keys[1], 'user_type', 'user_id', 'copyrisk_version')
  if owner[1] ~= args[1] or owner[2] ~= args[2] then
    return 'other'
  end
  if not owner[3] and redis.call('PTTL', keys[1]) >= 0 then
    redis.call('PEXPIRE', keys[1], args[3])
  end
  return 'own'
end

-- args: 1 version, 2 ms to keep it ('': for good), 3 how many words to set, those words, then fields to delete
local function put(keys, args)
  local first_deleted = 4 + tonumber(args[3])
  if redis.call('HLEN', keys[1]) == 0 then
    redis.call('HSET', keys[1], 'copyrisk_version', args[1], unpack(args, 4, first_deleted - 1))
  else
    local stored = redis.call('HGET', keys[1], 'copyrisk_version')
    if stored and tonumber(stored) >= tonumber(args[1]) then
      return 0
    end
    redis.call('HSET', keys[1], 'copyrisk_version', args[1], unpack(args, 4, first_deleted - 1))
    if args[first_deleted] then
      redis.call('HDEL', keys[1], unpack(args, first_deleted))
    end
    redis.call('PERSIST', keys[1])
  end
  if args[2] ~= '' then
    redis.call('PEXPIRE', keys[1], args[2])
  end
  return 1
end

-- args: 1 '1' if they hold the symbol, then accounts (at most 1000), each with its version
local function hold(keys, args)
  local members, versions = {}, {}
  for i = 2, #args, 2 do
    members[#members + 1], versions[#versions + 1] = args[i], args[i + 1]
  end
  local stored = redis.call('HMGET', keys[2], unpack(members))
  redis.call('SCARD', keys[1]) -- a key of a wrong type fails here, before anything is written
  local newer, held = {}, {}
  for i, member in ipairs(members) do
    if not stored[i] or tonumber(stored[i]) < tonumber(versions[i]) then
      newer[#newer + 1], newer[#newer + 2] = member, versions[i]
      held[#held + 1] = member
    end
  end
  if #held > 0 then
    redis.call('HSET', keys[2], unpack(newer))
    redis.call(args[1] == '1' and 'SADD' or 'SREM', keys[1], unpack(held))
  end
  return #held
end

-- args: 1 owner, 2 the token it was given last ('': none), 3 ms that the lease holds (0: it is given up), 4 a token that
-- the next one must be above; answered with when it ends by this server's clock and a new token, or that another has it.
-- Only the last token renews: of a process and its clone one goes on. Tokens begin with the clock, so that a lost key
-- starts above its end. More time left than the lease holds is a clock that was set back: nobody knows how old it is.
local function lease(keys, args)
  local said = redis.call('HMGET', keys[1], 'owner', 'token', 'ends_ms', 'hold_ms')
  local now, token = now_ms(), token_of(said[2])
  local left = (token_of(said[3]) or 0) - now
  local is_held = left > 0 and left <= math.min(token_of(said[4]) or 0, LEASE_LIMIT_MS)
  if is_held and not (said[1] == args[1] and said[2] == args[2]) then
    return { 'other', left }
  end
  token = math.max(token and token + 1 or now, tonumber(args[4]) + 1)
  local ends = now + tonumber(args[3])
  local token_text = string.format('%.0f', token)
  redis.call('HSET', keys[1], 'owner', args[1], 'token', token_text, 'ends_ms', string.format('%.0f', ends),
    'hold_ms', args[3])
  return { 'own', ends, token_text }
end

-- Whether a lease is still that of who was given this token.
local function is_leased(key, token)
  local said = redis.call('HMGET', key, 'token', 'ends_ms')
  return said[1] == token and now_ms() <= (token_of(said[2]) or 0)
end

-- args: none: where the trail ends; else 1 number and 2 hash of its head, 3 id of its last entry, as they were read,
-- 4 'aside' if what is there is to be kept beside it, 5 number and 6 hash of the head to come, then the entries
local function trail(keys, args)
  local head = redis.call('HMGET', keys[2], 'seq', 'hash', 'first')
  local last = redis.call('XREVRANGE', keys[1], '+', '-', 'COUNT', 1)[1]
  local seq, hash, id = head[1] or '', head[2] or '', last and last[1] or ''
  if #args == 0 or seq ~= args[1] or hash ~= args[2] or id ~= args[3] then
    -- Ids only rise: also above those of entries that were taken away.
    local top = id
    for i, word in ipairs(last and redis.call('XINFO', 'STREAM', keys[1]) or {}) do
      if word == 'last-generated-id' then
        top = redis.call('XINFO', 'STREAM', keys[1])[i + 1]
      end
    end
    return { 'head', seq, hash, id, last and last[2][2] or '', redis.call('XLEN', keys[1]), head[3] or '', top }
  end
  local before = tonumber(args[5]) - (#args - 6)
  if id == '' then
    redis.call('DEL', keys[1])
  elseif args[4] == 'aside' then
    redis.call('RENAME', keys[1], keys[3])
  end
  for i = 7, #args do
    redis.call('XADD', keys[1], string.format('%.0f-0', before + i - 6), 'entry', args[i])
  end
  redis.call('HSET', keys[2], 'seq', args[5], 'hash', args[6])
  if id == '' or args[4] == 'aside' then
    redis.call('HSET', keys[2], 'first', string.format('%.0f', before + 1))
  end
  return { 'done' }
end

-- args: 1 the token of the lease, then for each account (at most 1000) the account, its episode as it was read ('': none)
-- and as it is now ('': it is over), and how many words its notice has (0: none), followed by those; all or nothing
local function episodes(keys, args)
  if not is_leased(keys[1], args[1]) then
    return 'lost'
  end
  redis.call('HLEN', keys[2])
  redis.call('XLEN', keys[3]) -- keys of a wrong type fail here, before anything is written
  local i = 2
  while i <= #args do
    if stands(keys[2], args[i]) ~= args[i + 1] then
      return 'changed'
    end
    i = i + 4 + tonumber(args[i + 3])
  end
  i = 2
  while i <= #args do
    local words = tonumber(args[i + 3])
    if args[i + 2] == '' then
      redis.call('HDEL', keys[2], args[i])
    else
      redis.call('HSET', keys[2], args[i], args[i + 2])
    end
    if words > 0 then
      redis.call('XADD', keys[3], '*', unpack(args, i + 4, i + 3 + words))
    end
    i = i + 4 + words
  end
  return 'done'
end

-- args: 1 the token of the lease, 2 master, 3 id of the cascade, 4 header, 5 how the keys of cascades begin, then the
-- fields of the followers, each with its state. All of it or nothing; a cascade that is gone is not running.
local function cascade_begin(keys, args)
  if not is_leased(keys[1], args[1]) then
    return { 'lost' }
  end
  if redis.call('EXISTS', keys[3]) == 1 then
    return { 'known' }
  end
  local running = redis.call('HGET', keys[2], args[2])
  if running and redis.call('EXISTS', args[5] .. running) == 1 then
    return { 'running', running }
  end
  local now = string.format('%.0f', now_ms())
  redis.call('HSET', keys[3], 'header', args[4], 'started_ms', now)
  for i = 6, #args, 1000 do
    redis.call('HSET', keys[3], unpack(args, i, math.min(i + 999, #args)))
  end
  redis.call('HSET', keys[2], args[2], args[3])
  return { 'begun', now }
end

-- args: 1 the token of the lease, then fields of followers (at most 1000), each with its state
local function cascade_note(keys, args)
  if not is_leased(keys[1], args[1]) then
    return { 'lost' }
  end
  if redis.call('EXISTS', keys[3]) == 0 then
    return { 'gone' }
  end
  redis.call('HSET', keys[3], unpack(args, 2))
  return { 'done' }
end

-- args: 1 the token of the lease, 2 master, 3 id of the cascade
local function cascade_forget(keys, args)
  if not is_leased(keys[1], args[1]) then
    return { 'lost' }
  end
  if redis.call('HGET', keys[2], args[2]) == args[3] then
    redis.call('HDEL', keys[2], args[2])
  end
  return { 'done' }
end

-- args: 1 the token of the lease, 2 master, 3 id of the cascade, 4 summary, 5 ms to keep the cascade, 6 how many are
-- listed
local function cascade_end(keys, args)
  if not is_leased(keys[1], args[1]) then
    return { 'lost' }
  end
  redis.call('ZCARD', keys[4]) -- a key of a wrong type fails here, before anything is written
  if redis.call('HGET', keys[2], args[2]) == args[3] then
    redis.call('HDEL', keys[2], args[2])
  end
  if redis.call('EXISTS', keys[3]) == 0 then
    return { 'gone' }
  end
  local now = string.format('%.0f', now_ms())
  redis.call('HSET', keys[3], 'summary', args[4], 'finished_ms', now)
  redis.call('PEXPIRE', keys[3], args[5])
  redis.call('ZADD', keys[4], now, args[3])
  redis.call('ZREMRANGEBYRANK', keys[4], 0, -1 - tonumber(args[6]))
  return { 'done', now }
end

local function fill(keys, args)
  if redis.call('EXISTS', keys[1]) == 1 then
    return 0
  end
  redis.call('HSET', keys[1], unpack(args))
  return 1
end

-- Fields of a sink: state (sending, waiting, sent, failed), entry (of the stream, under which that is so), attempts,
-- owner, until_ms (of sending: another may begin then; of waiting: it is due), span_ms (how long that was at first), code.
-- args: 1 sink, 2 owner, 3 ms that others wait for it, 4 entry id, 5 the warning's ts, 6 ms from then that it is worth
-- sending, 7 ms to keep the hash; answered `yours`, the number of the attempt and the state before, or why not: `over`,
-- `wait` and ms, `old`. More time left than there was is a clock that was set back.
local function notice_begin(keys, args)
  local sink, now = args[1] .. ':', now_ms()
  local said = redis.call('HMGET', keys[1], sink .. 'state', sink .. 'entry', sink .. 'attempts', sink .. 'until_ms',
    sink .. 'span_ms')
  local state, is_same = said[1] or '', said[2] == args[4]
  if state == 'sent' or (state == 'failed' and is_same) then
    return { 'over', state }
  end
  local left = (tonumber(said[4] or '') or 0) - now
  local is_due = left <= 0 or left > (tonumber(said[5] or '') or 0)
  if (state == 'sending' or (state == 'waiting' and is_same)) and not is_due then
    return { 'wait', left }
  end
  if now - tonumber(args[5]) > tonumber(args[6]) then
    return { 'old' }
  end
  local attempts = (is_same and tonumber(said[3] or '') or 0) + 1
  redis.call('HSET', keys[1], sink .. 'state', 'sending', sink .. 'entry', args[4], sink .. 'attempts', attempts,
    sink .. 'owner', args[2], sink .. 'until_ms', string.format('%.0f', now + tonumber(args[3])),
    sink .. 'span_ms', args[3])
  redis.call('PEXPIRE', keys[1], args[7])
  return { 'yours', attempts, state }
end

-- args: 1 sink, 2 owner, 3 number of the attempt, 4 state (sent, waiting, failed), 5 ms to wait, 6 code, 7 ms to keep
-- the hash. That it was sent is so whoever has it by now; anything else says only the one whose attempt it is.
local function notice_end(keys, args)
  local sink = args[1] .. ':'
  local said = redis.call('HMGET', keys[1], sink .. 'state', sink .. 'owner', sink .. 'attempts')
  if said[1] == 'sent' then
    return 'over'
  end
  if args[4] ~= 'sent' and not (said[1] == 'sending' and said[2] == args[2] and said[3] == args[3]) then
    return 'other'
  end
  redis.call('HSET', keys[1], sink .. 'state', args[4], sink .. 'until_ms',
    string.format('%.0f', now_ms() + tonumber(args[5])), sink .. 'span_ms', args[5], sink .. 'code', args[6])
  redis.call('PEXPIRE', keys[1], args[7])
  return 'done'
end

-- args: 1 ms to remember the request, then the words of the entry; answered with its id, '' if it was made before
local function ask(keys, args)
  if not redis.call('SET', keys[1], '1', 'NX', 'PX', args[1]) then
    return ''
  end
  return redis.call('XADD', keys[2], '*', unpack(args, 2))
end

-- args: 1 scope, 2 what stands there as it was read ('': nothing), 3 what is to stand there ('': nothing), 4 how many
-- there may be; answered with `done`, `changed`, or `full`
local function kill(keys, args)
  if stands(keys[1], args[1]) ~= args[2] then
    return 'changed'
  end
  if args[3] == '' then
    redis.call('HDEL', keys[1], args[1])
    return 'done'
  end
  if args[2] == '' and redis.call('HLEN', keys[1]) >= tonumber(args[4]) then
    return 'full'
  end
  redis.call('HSET', keys[1], args[1], args[3])
  return 'done'
end

redis.register_function { function_name = 'copyrisk_read_v1', callback = read, flags = { 'no-writes' } }
redis.register_function('copyrisk_change_v1', change)
redis.register_function('copyrisk_copy_v1', copy)
redis.register_function('copyrisk_protect_v1', protect)
redis.register_function('copyrisk_note_v1', note)
redis.register_function('copyrisk_claim_v1', claim)
redis.register_function('copyrisk_put_v1', put)
redis.register_function('copyrisk_hold_v1', hold)
redis.register_function('copyrisk_ask_v1', ask)
redis.register_function('copyrisk_lease_v1', lease)
redis.register_function('copyrisk_trail_v1', trail)
redis.register_function('copyrisk_episodes_v1', episodes)
redis.register_function('copyrisk_kill_v1', kill)
redis.register_function('copyrisk_cascade_begin_v1', cascade_begin)
redis.register_function('copyrisk_cascade_note_v1', cascade_note)
redis.register_function('copyrisk_cascade_forget_v1', cascade_forget)
redis.register_function('copyrisk_cascade_end_v1', cascade_end)
redis.register_function('copyrisk_fill_v1', fill)
redis.register_function('copyrisk_notice_begin_v1', notice_begin)
redis.register_function('copyrisk_notice_end_v1', notice_end)
