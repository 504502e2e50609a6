"""A follower's copy settings changed: read, merged, held against what an order would make of them, and written.

All of it lies in the follower's slot, so settings, answer and audit entry are one call: it is done whole or not at all,
only if the settings still are what was read. The replicator hears of the changed configuration as of any other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from copyrisk import keys
from copyrisk.copying import CopyDefaults, parse_settings
from copyrisk.errors import Refused, TryLater
from copyrisk.fields import COPY_FIELDS
from copyrisk.following import COPY_STATUS, SETTING_NAMES, account_of
from copyrisk.store.act_answers import Act, answered, end, ending_of
from copyrisk.store.changes import ANSWER_KEEP_MS
from copyrisk.store.functions import refused, text
from copyrisk.store.pipe import Pipe, pack

_TRIES = 20
_INVALID = "_invalid"
#: Compare, then write all three; `+` stands before a value that is there, and a lone `-` for one that is absent.
_CHANGE = """
local there = redis.call('GET', KEYS[2])
if there and there ~= ARGV[1] then return { 'repeated', there } end
if redis.call('EXISTS', KEYS[1]) == 0 then return { 'changed' } end
local at, count = 6, tonumber(ARGV[5])
for i = at, at + 2 * count - 1, 2 do
  local found = redis.call('HGET', KEYS[1], ARGV[i])
  if (found and '+' .. found or '-') ~= ARGV[i + 1] then return { 'changed' } end
end
redis.call('XLEN', KEYS[3])
at = at + 2 * count
for i = at, #ARGV, 2 do
  if ARGV[i + 1] == '-' then
    redis.call('HDEL', KEYS[1], ARGV[i])
  else
    redis.call('HSET', KEYS[1], ARGV[i], string.sub(ARGV[i + 1], 2))
  end
end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('XADD', KEYS[3], '*', 'entry', ARGV[4])
return { 'done' }
"""


@dataclass(frozen=True, slots=True)
class SettingsChange:
    """What is to become of a follower's copy settings.

    Attributes
    ----------
    values : mapping of str to str
        As they are stored (`following.check_settings`).
    unset : sequence of str
        Names of those that are taken away, so that the broker's settings hold again.
    """

    follower: str
    values: Mapping[str, str]
    unset: Sequence[str] = ()


def change_settings(pipe: Pipe, act: Act, change: SettingsChange, default: CopyDefaults) -> dict[str, str]:
    """Change settings, and answer the act that asked for it; returns the event.

    Returns
    -------
    dict of str to str
        `ok`; `account_missing` (which is not stored); `invalid_` + a setting: with the others as they are, it would
        keep the follower from being copied to.

    Raises
    ------
    Refused, TryLater
        `idempotency_conflict`; `account_busy`.
    StoreError, StoreUnavailable
        It may be done or not; it may be asked for again.
    """
    key = keys.config(account_of(change.follower))
    for _ in range(_TRIES):
        exists, values, now = pipe.ask(pack("EXISTS", key), pack("HMGET", key, *COPY_FIELDS), pack("TIME"))
        if not exists:
            raise Refused("there is no such follower", code="account_missing")
        there = {name: None if value is None else text(value) for name, value in zip(COPY_FIELDS, values, strict=True)}
        after = {**there, **change.values, **dict.fromkeys(change.unset)}
        ts_ms = int(now[0]) * 1000 + int(now[1]) // 1000
        refusal = _refusal_of(there, after, default)
        if refusal:
            message = f"{refusal} would keep anything from being copied"
            return end(pipe, act, ending_of(act, f"invalid_{refusal}", message, {}, ts_ms=ts_ms))
        said = {"follower_id": change.follower, "settings": settings_of(after)}
        ending = ending_of(act, "ok", "", said, ts_ms=ts_ms)
        read = dict(zip(COPY_FIELDS, values, strict=True))
        words = [ending.answer, ANSWER_KEEP_MS, ending.audit, *_words(read, change)]
        named = (key, act.answer_key, keys.audit(act.account))
        (reply,) = pipe.exchange([pack("EVAL", _CHANGE, 3, *named, act.begun, *words)])
        failure = refused(reply)
        if failure is not None:
            raise failure
        if reply[0] == b"done":
            return dict(ending.event)
        if reply[0] == b"repeated":
            return answered(act, text(reply[1]))
    raise TryLater("the follower's settings keep changing", code="account_busy")


def settings_of(config: Mapping[str, str | None]) -> dict[str, str]:
    """The copy settings that a configuration has."""
    return {name: value for name in SETTING_NAMES if (value := config.get(name)) is not None}


def _refusal_of(before: Mapping[str, str | None], after: Mapping[str, str | None], default: CopyDefaults) -> str:
    """The setting that cannot be used with the others; one that could not be used before is not this change's fault."""
    found = [_unusable(said, default) for said in (before, after)]
    return found[1] if found[1] != found[0] else ""


def _unusable(said: Mapping[str, str | None], default: CopyDefaults) -> str:
    states = {"status": "1", "is_active": "1", COPY_STATUS: "active"}
    refusal = parse_settings([states.get(name, said[name]) for name in COPY_FIELDS], default).refusal
    return refusal.removesuffix(_INVALID) if refusal.endswith(_INVALID) else ""


def _words(there: Mapping[str, bytes | None], change: SettingsChange) -> list[str | bytes | int]:
    compared = [name for name in COPY_FIELDS if name in SETTING_NAMES]
    words: list[str | bytes | int] = [len(compared)]
    for name in compared:
        value = there[name]
        words += [name, b"-" if value is None else b"+" + value]
    for name, said in change.values.items():
        words += [name, f"+{said}"]
    return words + [word for name in change.unset for word in (name, "-")]
