"""New followers of a master: claimed, configured, with a first portfolio, and switched on last.

`store.relations` says in which order the steps are done, and what a crash after each leaves.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from copyrisk import crash, fields, keys
from copyrisk.agreement import FollowerRow
from copyrisk.decimals import parse_decimal
from copyrisk.errors import CopyriskError, InvalidId, Refused, TryLater
from copyrisk.following import (
    ACCOUNT_NUMBER,
    COPY_STATUS,
    INHERITED,
    LEVERAGE,
    WALLET_BALANCE,
    Candidate,
    CopyStatus,
    FollowRequest,
    Outcome,
    account_of,
    check_master,
    check_request,
    new_configuration,
    status_word,
)
from copyrisk.identifiers import Account
from copyrisk.store.filler import Filler
from copyrisk.store.functions import fill_request, refused, text
from copyrisk.store.pipe import Pipe, pack
from copyrisk.store.relation_steps import (
    AT_ONCE,
    Backing,
    Batch,
    give_up_request,
    join_request,
    status_request,
    write_rows,
)
from copyrisk.store.settled import SettledSource
from copyrisk.terms import AccountType, CalcStatus

_MASTER_FIELDS = (*INHERITED, ACCOUNT_NUMBER)
_FOLLOWER_FIELDS = (COPY_STATUS, ACCOUNT_NUMBER, WALLET_BALANCE, LEVERAGE)
_ZEROS = (
    *(fields.USED_MARGIN, fields.USED_MARGIN_EXECUTED, fields.USED_MARGIN_ALL),
    *(fields.MARGIN_LEVEL, fields.OPEN_PNL, fields.TOTAL_PL),
)


@dataclass(frozen=True, slots=True)
class _Found:
    """What there is of a follower."""

    claim: str
    has_config: bool
    config: Mapping[str, str]
    is_member: bool
    needs_portfolio: bool


@dataclass(slots=True)
class _Enrolment:
    """Followers of one call on their way, by id."""

    pipe: Pipe
    filler: Filler
    database: Backing | None
    master: str
    terms: Mapping[str, str]
    batch: Batch
    candidates: dict[str, Candidate]
    found: dict[str, _Found] = field(default_factory=dict)


def follow(
    pipe: Pipe, master: str, requests: Sequence[FollowRequest], *, database: Backing | None = None
) -> list[Outcome]:
    """Have followers copy a master; the server's functions must be loaded (`library.load`).

    A follower without a configuration, here and in the database, gets one if an amount is given: group, leverage,
    `sending_orders` and levels are its master's, the amount is its balance. An existing one gets the copy settings that
    are given, and nothing else of it changes.

    Parameters
    ----------
    master : str
        Its id, or `strategy_provider:id`.
    database : Backing or None
        Where accounts are looked for, and where it is noted whom they copy.

    Returns
    -------
    list of Outcome
        One for each request: `done`, or `self_follow`, `follower_as_master`, `not_a_master`, `not_a_follower`,
        `already_following`, `other_master`, `named_twice`, `master_missing`, `master_unusable`, `account_missing`,
        `invalid_account_id`, `invalid_user_type`, `invalid_investment`, `invalid_account_number`, `invalid_email`,
        `unknown_setting`, `invalid_` + setting, `key_unusable`, and what the database answers
        (`database_unavailable`, `history_pending`, `row_refused`, ...).

    Raises
    ------
    StoreError, StoreUnavailable
        Any of it may have been done; it may be asked for again, and goes on where it stopped.
    """
    filler = Filler(pipe, None if database is None else SettledSource(pipe, database))
    try:
        master_id = check_master(master)
        terms = _terms_of(pipe, filler, Account(AccountType.MASTER, master_id))
    except (Refused, InvalidId, TryLater) as refusal:
        return [Outcome(request.follower, refusal.code, str(refusal)) for request in requests]
    outcomes: list[Outcome] = []
    seen: set[str] = set()
    for start in range(0, len(requests), AT_ONCE):
        some = requests[start : start + AT_ONCE]
        admitted = [_admit(request, master_id, seen) for request in some]
        candidates = {one.follower: one for one in admitted if isinstance(one, Candidate)}
        enrolment = _Enrolment(pipe, filler, database, master_id, terms, Batch(pipe), candidates)
        _enrol(enrolment)
        done = enrolment.batch.outcomes
        outcomes += [done[one.follower] if isinstance(one, Candidate) else one for one in admitted]
    return outcomes


def _terms_of(pipe: Pipe, filler: Filler, master: Account) -> dict[str, str]:
    """What the master's configuration says; from the database if it is not here.

    Raises
    ------
    Refused, TryLater, StoreError
        `master_missing`.
    """
    asked = [pack("HMGET", keys.config(master), *_MASTER_FIELDS), pack("EXISTS", keys.config(master))]
    for _ in range(2):
        values, exists = pipe.exchange(asked)
        fault = refused(values)
        if fault is not None:
            raise fault
        if exists:
            return {name: text(value) for name, value in zip(_MASTER_FIELDS, values, strict=True) if value is not None}
        if not filler.account(master):
            break
    raise Refused(f"there is no master {master.id}", code="master_missing")


def _admit(request: FollowRequest, master: str, seen: set[str]) -> Candidate | Outcome:
    try:
        candidate = check_request(request, master)
        if candidate.follower in seen:
            raise Refused("named before in the same call", code="named_twice")
    except (Refused, InvalidId) as refusal:
        return Outcome(request.follower, refusal.code, str(refusal))
    seen.add(candidate.follower)
    return candidate


def _enrol(it: _Enrolment) -> None:
    _look(it, it.candidates)
    _look(it, _fill(it, [name for name, found in it.found.items() if not found.has_config]))
    willing = _judge(it)
    leftover = {name: it.found[name].config[COPY_STATUS] for name in willing if not it.found[name].claim}
    unsettled = [name for name, status in leftover.items() if status not in ("", CopyStatus.STOPPED)]
    settled = it.batch.ask({name: [status_request(name, CopyStatus.STOPPED)] for name in unsettled})
    claimed = _claim(it, [name for name in willing if name not in unsettled or name in settled])
    crash.reach("relations.claimed")
    configured = _configure(it, claimed)
    crash.reach("relations.configured")
    recorded = _record(it, configured)
    crash.reach("relations.recorded")
    _value(it, recorded)
    crash.reach("relations.valued")
    joined = list(it.batch.ask({name: [join_request(name, it.master)] for name in recorded}))
    crash.reach("relations.joined")
    for name in it.batch.ask({name: [status_request(name, CopyStatus.ACTIVE)] for name in joined}):
        it.batch.outcomes[name] = Outcome(name)
    crash.reach("relations.active")


def _look(it: _Enrolment, followers: Iterable[str]) -> None:
    def requests(name: str) -> list[bytes]:
        account = account_of(name)
        return [
            pack("GET", keys.provider_of(name)),
            pack("EXISTS", keys.config(account)),
            pack("HMGET", keys.config(account), *_FOLLOWER_FIELDS),
            pack("SISMEMBER", keys.active_followers(it.master), name),
            pack("SCARD", keys.orders_index(account)),
            pack("HEXISTS", keys.portfolio(account), fields.CALC_STATUS),
        ]

    answers = it.batch.ask({name: requests(name) for name in followers})
    for name, (claim, exists, values, is_member, orders, has_portfolio) in answers.items():
        config = {key: text(value) for key, value in zip(_FOLLOWER_FIELDS, values, strict=True) if value is not None}
        config[COPY_STATUS] = status_word(config.get(COPY_STATUS, ""))
        needs_portfolio = not orders and not has_portfolio
        it.found[name] = _Found(text(claim), bool(exists), config, bool(is_member), needs_portfolio)


def _fill(it: _Enrolment, followers: Iterable[str]) -> list[str]:
    """Those whose configuration came from the database."""
    filled = []
    for name in followers:
        try:
            if it.filler.account(account_of(name)):
                filled.append(name)
        except TryLater as refusal:
            _drop(it, name, refusal)
    return filled


def _drop(it: _Enrolment, follower: str, refusal: CopyriskError) -> None:
    it.found.pop(follower, None)
    it.batch.refuse(follower, refusal)


def _judge(it: _Enrolment) -> list[str]:
    willing = []
    for name, found in list(it.found.items()):
        candidate, status = it.candidates[name], found.config[COPY_STATUS]
        number = found.config.get(ACCOUNT_NUMBER) or candidate.identity.get(ACCOUNT_NUMBER)
        try:
            if number and number == it.terms.get(ACCOUNT_NUMBER):
                raise Refused(f"it has its master's account number {number[:64]!a}", code="self_follow")
            if found.claim not in ("", it.master):
                raise Refused(f"it follows {found.claim[:64]!a}", code="other_master")
            is_whole = found.is_member if status == CopyStatus.ACTIVE else status == CopyStatus.PAUSED
            if found.claim and is_whole:
                raise Refused(f"it follows {it.master} already", code="already_following")
            if not found.has_config:
                new_configuration(it.terms, candidate)
            willing.append(name)
        except Refused as refusal:
            _drop(it, name, refusal)
    return willing


def _claim(it: _Enrolment, followers: Sequence[str]) -> list[str]:
    answers = it.batch.ask({name: [pack("SET", keys.provider_of(name), it.master, "NX", "GET")] for name in followers})
    claimed = []
    for name, (before,) in answers.items():
        if text(before) not in ("", it.master):
            it.batch.refuse(name, Refused(f"it follows {text(before)[:64]!a}", code="other_master"))
        else:
            claimed.append(name)
    return claimed


def _configure(it: _Enrolment, followers: Sequence[str]) -> list[str]:
    """Those that are configured, and `stopped`."""
    wanted: dict[str, list[bytes]] = {}
    for name in followers:
        key, settings = keys.config(account_of(name)), it.candidates[name].settings
        wanted[name] = (
            [] if it.found[name].has_config else [fill_request(key, new_configuration(it.terms, it.candidates[name]))]
        )
        words = [word for item in settings.items() for word in item]
        wanted[name].append(pack("HSET", key, COPY_STATUS, CopyStatus.STOPPED.value, *words))
    return list(it.batch.ask(wanted))


def _record(it: _Enrolment, followers: Sequence[str]) -> list[str]:
    """Those of which the database says whom they copy; the others give their claims up."""
    rows = [FollowerRow(name, it.master, CopyStatus.ACTIVE.value) for name in followers]
    codes = write_rows(it.database, rows)
    for name, code in codes.items():
        it.batch.refuse(name, Refused("the database does not take it", code=code))
    it.pipe.exchange([give_up_request(name, it.master) for name in codes])
    return [name for name in followers if name not in codes]


def _value(it: _Enrolment, followers: Sequence[str]) -> None:
    """First portfolios, as a tick writes them, of accounts that have no orders and none yet."""
    (now,) = it.pipe.exchange([pack("TIME")])
    fault = refused(now)
    if fault is not None:
        raise fault
    now_ms = int(now[0]) * 1000 + int(now[1]) // 1000
    wanted: dict[str, list[bytes]] = {}
    for name in followers:
        found = it.found[name]
        config = found.config if found.has_config else new_configuration(it.terms, it.candidates[name])
        balance, leverage = parse_decimal(config.get(WALLET_BALANCE)), parse_decimal(config.get(LEVERAGE))
        if found.needs_portfolio and balance is not None and leverage is not None and leverage > 0:
            portfolio = _flat_portfolio(account_of(name), float(balance), now_ms)
            wanted[name] = [portfolio, pack("PUBLISH", keys.PORTFOLIO_UPDATES, str(account_of(name)))]
    it.batch.ask(wanted)


def _flat_portfolio(account: Account, balance_usd: float, now_ms: int) -> bytes:
    balance, zero = fields.usd_text(balance_usd), fields.usd_text(0.0)
    says = {
        fields.CALC_STATUS: CalcStatus.OK.value,
        fields.DEGRADED_FIELDS: "",
        **dict.fromkeys((fields.EQUITY, fields.BALANCE, fields.FREE_MARGIN), balance),
        **dict.fromkeys(_ZEROS, zero),
        fields.TS: str(now_ms),
        fields.VALUED_TS: str(now_ms),
    }
    return pack("HSET", keys.portfolio(account), *(word for item in says.items() for word in item))
