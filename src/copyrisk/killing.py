"""What operators do with the kill switch: halt a scope, see what is halted, let it trade again."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np

from copyrisk import fields, identifiers, keys
from copyrisk._core import OrderEffect
from copyrisk.audit import AuditKind, Entry
from copyrisk.auditing import operator_name
from copyrisk.book import Book, RowNumbers
from copyrisk.decimals import parse_decimal
from copyrisk.errors import ConfigError, InvalidId, Refused, RowCode, StoreError
from copyrisk.gateway.messages import printable
from copyrisk.identifiers import Account
from copyrisk.kills import (
    REASON_CHARS,
    TRADING_HALTED,
    Kill,
    KillPolicy,
    Scope,
    ScopeKind,
    kill_text,
    orders_in,
    parse_kill,
    parse_scope,
)
from copyrisk.roles import client_of
from copyrisk.settings import Settings
from copyrisk.store import library
from copyrisk.store.functions import text
from copyrisk.store.kill_switch import followers_of_masters, read_stored, set_kill, take_away, waiting_on
from copyrisk.store.link import Link
from copyrisk.store.mirror import Mirror
from copyrisk.store.pipe import Pipe, pack
from copyrisk.store.trail import Trail, writer_name
from copyrisk.terms import AccountType

_TRIES = 20
_DAEMON_SILENT_MS = 10_000
_SHOWN_CHARS = 400


def add_kill_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`kill`, `revive`."""
    scopes = "all, account:TYPE:ID, master:ID or symbol:NAME"
    halt = commands.add_parser("kill", help="no new orders in a scope from now on; or see what is halted")
    halt.add_argument("scope", nargs="?", metavar="SCOPE", help=scopes)
    policies = [policy.value for policy in KillPolicy]
    halt.add_argument("--policy", choices=policies, default="keep", help="what becomes of what is open (default: keep)")
    halt.add_argument("--reason", default="", metavar="TEXT", help="why; clients are told")
    halt.add_argument("--dry-run", action="store_true", help="say what it would hit, and do nothing")
    halt.add_argument("--yes", action="store_true", help="do not ask")
    halt.add_argument("--list", action="store_true", dest="list_all", help="what is halted now")
    again = commands.add_parser("revive", help="let a halted scope trade again")
    again.add_argument("scope", metavar="SCOPE", help=f"{scopes}; or as `kill --list` shows it")
    again.add_argument("--reason", default="", metavar="TEXT", help="why, for the audit trail")


class _Opened(NamedTuple):
    """What a command works on."""

    pipe: Pipe
    client: Any
    trail: Trail
    settings: Settings


@contextmanager
def _opened(settings: Settings, what: str) -> Iterator[_Opened]:
    if settings.redis.url is None:
        raise ConfigError(f"{what}: say which server with --redis")
    client = client_of(settings, settings.redis.url)
    pipe = Pipe(client)
    try:
        library.load(client)
        yield _Opened(pipe, client, Trail(pipe, writer=writer_name()), settings)
    finally:
        pipe.close()
        client.close()


# ---- what a kill hits


@dataclass(slots=True)
class Hits:
    """What is open in a scope now.

    Attributes
    ----------
    accounts : int
        That have orders there.
    positions, waiting, unreadable : int
        Orders that are executed, those that wait or are on their way, and those of which neither is known.
    lots : dict of str to list of float
        Bought and sold lots of positions by symbol.
    """

    accounts: int = 0
    positions: int = 0
    waiting: int = 0
    unreadable: int = 0
    lots: dict[str, list[float]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """For people."""
        orders = f"{self.positions} open positions, {self.waiting} orders that wait"
        more = f", {self.unreadable} orders that cannot be read" if self.unreadable else ""
        lots = (
            f"  {name}  bought {self.lots[name][0]:.2f}  sold {self.lots[name][1]:.2f}" for name in sorted(self.lots)
        )
        return [f"{self.accounts} accounts, {orders}{more}", *lots]


def _hits_of(book: Book, rows: RowNumbers) -> Hits:
    orders: Any = book.orders[rows]
    is_known = orders["code"] == RowCode.OK
    is_open = is_known & (orders["effect"] == OrderEffect.EXECUTED)
    hits = Hits(len(np.unique(orders["account"])), int(is_open.sum()), int((is_known & ~is_open).sum()))
    hits.unreadable = int((~is_known).sum())
    chosen = orders[is_open & (orders["instrument"] >= 0)]
    for row in np.unique(chosen["instrument"]).tolist():
        own = chosen[chosen["instrument"] == row]
        lots = hits.lots.setdefault(book.market.instrument_keys[row].symbol, [0.0, 0.0])
        for side, is_side in enumerate((own["is_buy"] == 1, own["is_buy"] != 1)):
            lots[side] = round(lots[side] + float(own["lots"][is_side].sum()), 8)
    return hits


def _look(on: _Opened, scope: Scope) -> tuple[Hits, str]:
    """What a kill of a scope hits, and a warning if there is nothing of that name now (empty: there is)."""
    book = Book(on.settings.rules())
    mirror = Mirror(Link(on.client, book.market.names.index), book, hears_wishes=False)
    try:
        mirror.read(0.0)
    finally:
        mirror.close()
    rows = orders_in(book, [scope])
    is_there = True
    if scope.kind is ScopeKind.MASTER:
        is_there = book.row_of(Account(AccountType.MASTER, scope.name)) >= 0
        followers = followers_of_masters(on.pipe, [scope.name])[scope.name]
        rows = np.union1d(rows, _copies_of(on.pipe, book, followers)).astype(np.int32)
    elif scope.kind is ScopeKind.ACCOUNT:
        is_there = book.row_of(identifiers.parse_account(scope.name)) >= 0
    elif scope.kind is ScopeKind.SYMBOL:
        (count,) = on.pipe.ask(pack("EXISTS", keys.market(scope.name)))
        is_there = bool(count)
        rows = np.union1d(rows, waiting_on(on.pipe, book, [scope.name])).astype(np.int32)
    absent = (
        "" if is_there else f"warning: there is no {scope.kind.value} {scope.name} now; should it come, it is halted"
    )
    return _hits_of(book, rows), absent


def _copies_of(pipe: Pipe, book: Book, followers: list[Account]) -> list[int]:
    """Order rows of the copies that followers of one master hold."""
    here = {one: row for one in followers if (row := book.row_of(one)) >= 0}
    asked = [(one, order_id, row) for one, own in here.items() for order_id, row in book.orders_of(own).items()]
    replies = pipe.exchange(
        [pack("HGET", keys.holding(one, order_id), "master_order_id") for one, order_id, _ in asked]
    )
    return [row for (_, _, row), reply in zip(asked, replies, strict=True) if isinstance(reply, bytes) and reply]


# ---- kill


def _kill(settings: Settings, options: argparse.Namespace) -> int:
    if options.list_all:
        with _opened(settings, "kill") as on:
            return _list(on)
    if options.scope is None:
        raise ConfigError("say what to halt: all, account:TYPE:ID, master:ID or symbol:NAME; or --list")
    scope, policy = _scope(options.scope), KillPolicy(options.policy)
    _check_reason(options.reason)
    with _opened(settings, "kill") as on:
        hits = _show_hits(on, scope, policy)
        if options.dry_run:
            print("nothing was done")
            return 0 if hits is not None else 1
        if not options.yes and not _is_confirmed(f"halt {scope}, policy {policy}?"):
            print(f"{scope} was not halted")
            return 1
        return _halt(on, scope, policy, options.reason, hits)


def _scope(said: str) -> Scope:
    try:
        return parse_scope(said)
    except InvalidId as fault:
        raise ConfigError(str(fault), code=fault.code) from None


def _check_reason(reason: str) -> None:
    if len(reason) > REASON_CHARS or not reason.isprintable():
        raise ConfigError(f"--reason is one line of at most {REASON_CHARS} characters")


def _show_hits(on: _Opened, scope: Scope, policy: KillPolicy) -> Hits | None:
    """Say what a kill hits; `None` if that cannot be told, which is no reason against it."""
    try:
        hits, absent = _look(on, scope)
        ts, time = on.pipe.ask(pack("HGET", keys.TICK, fields.TS), pack("TIME"))
    except StoreError as failure:
        print(printable(f"{scope}: what it hits cannot be told: {failure}", _SHOWN_CHARS))
        return None
    print("\n".join([f"{scope}:", *(f"  {line}" for line in hits.lines())]))
    if absent:
        print(absent)
    ticked = parse_decimal(text(ts))
    if policy is KillPolicy.CLOSE and (ticked is None or int(time[0]) * 1000 - ticked > _DAEMON_SILENT_MS):
        print("warning: no daemon is at work; nothing is closed until one is")
    return hits


def _is_confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("there is no terminal to ask on: say --yes")
    try:
        return input(f"{question} (yes/no) ").strip().lower() in ("y", "yes")
    except (EOFError, UnicodeDecodeError):
        return False


def _halt(on: _Opened, scope: Scope, policy: KillPolicy, reason: str, hits: Hits | None) -> int:
    name, by = str(scope).encode(), operator_name()
    for _ in range(_TRIES):
        stored, now_ms = read_stored(on.pipe)
        stands = stored.get(name, b"")
        before = parse_kill(str(scope), text(stands)) if stands else None
        if before is not None and before.is_readable and before.policy in (policy, KillPolicy.CLOSE):
            print(printable(f"{scope} is halted already: {_words(before)}", _SHOWN_CHARS))
            return 0
        said = {"act": "kill", "scope": str(scope), "policy": policy.value, "before": text(stands), "hits": _said(hits)}
        unwritten = _note(on, str(scope), reason, by, said)
        if set_kill(on.pipe, name, stands, kill_text(policy, reason, by, now_ms)):
            fate = "what is open there is closed" if policy is KillPolicy.CLOSE else "what is open there stays open"
            print(f"{scope} is halted; {fate}")
            if unwritten:  # an emergency does not wait for a trail that cannot be written
                print(printable(f"warning: it is not in the audit trail: {unwritten}", _SHOWN_CHARS))
            return 1 if unwritten else 0
    raise StoreError(f"what stands under {scope} changes all the time", code="kill_switch_busy")


def _note(on: _Opened, scope: str, reason: str, by: str, said: dict[str, Any]) -> str:
    """Write what is about to be done into the audit trail; returns why it could not be written."""
    kind, _, name = scope.partition(":")
    account = name if kind == ScopeKind.ACCOUNT else ""
    try:
        on.trail.append([Entry(AuditKind.KILL, account, f"operator:{by}", reason, said)])
    except (StoreError, Refused) as failure:
        return str(failure)
    return ""


def _said(hits: Hits | None) -> Any:
    names = ("accounts", "positions", "waiting", "unreadable", "lots")
    return None if hits is None else {name: getattr(hits, name) for name in names}


# ---- list, revive


def _words(kill: Kill) -> str:
    if not kill.is_readable:
        whom = "it" if kill.code == TRADING_HALTED else "EVERYBODY"
        return f"cannot be read: {whom} is halted, nothing is closed"
    since = datetime.fromtimestamp(kill.ts_ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return f"policy {kill.policy}, since {since}, by {kill.by or '-'}" + (f": {kill.reason}" if kill.reason else "")


def _list(on: _Opened) -> int:
    stored, _ = read_stored(on.pipe)
    kills = [parse_kill(text(scope), text(stored[scope])) for scope in sorted(stored)]
    for kill in kills:
        print(printable(f"{kill.scope}  {_words(kill)}", _SHOWN_CHARS))
    print(f"{len(kills)} scopes are halted")
    return 0


def _revive(settings: Settings, options: argparse.Namespace) -> int:
    _check_reason(options.reason)
    with _opened(settings, "revive") as on:
        by = operator_name()
        for _ in range(_TRIES):
            stored, _now_ms = read_stored(on.pipe)
            name = next((scope for scope in stored if text(scope) == options.scope), None)
            if name is None:
                print(f"{_scope(options.scope)} is not halted")
                return 0
            said = {"act": "revive", "scope": text(name), "before": text(stored[name])}
            unwritten = _note(on, text(name), options.reason, by, said)
            if unwritten:  # letting trade again can wait for its record
                raise StoreError(f"nothing was done, for the audit trail cannot be written: {unwritten}")
            if take_away(on.pipe, name, stored[name]):
                left = f"; {len(stored) - 1} other scopes stay halted" if len(stored) > 1 else ""
                print(printable(f"{text(name)} trades again{left}", _SHOWN_CHARS))
                return 0
        raise StoreError("what stands there changes all the time", code="kill_switch_busy")


KILLING: dict[str, Callable[[Settings, argparse.Namespace], int]] = {"kill": _kill, "revive": _revive}
