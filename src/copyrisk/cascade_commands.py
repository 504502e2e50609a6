"""`copyrisk-run cascade`: what a cascade would do, before it happens; which are running and have ended; one in full."""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from copyrisk import fields, keys, layout
from copyrisk.cascade import Standing, cascade_facts
from copyrisk.cascade_plan import PlannedClose, lots_by_symbol, plan_close, total_usd
from copyrisk.cover import value_now
from copyrisk.decimals import decimal_text, money_text
from copyrisk.errors import ConfigError, CopyriskError, Refused
from copyrisk.following import account_of, check_master
from copyrisk.gateway.messages import printable
from copyrisk.identifiers import Account
from copyrisk.layout import Rows
from copyrisk.records import Order
from copyrisk.risk import CONVERSION_SIDES, are_known
from copyrisk.roles import client_of
from copyrisk.settings import Settings
from copyrisk.store.cascade_copies import CopiesOf, find_copies, read_members
from copyrisk.store.cascades import Cascades
from copyrisk.store.copy_states import ask
from copyrisk.store.filler import Filler
from copyrisk.store.functions import text
from copyrisk.store.markets import Markets
from copyrisk.store.pipe import Pipe, pack
from copyrisk.terms import AccountType

_SHOWN_CHARS, _AT_ONCE, _LISTED = 4_000, 500, 50


def add_cascade_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`cascade`."""
    cascade = commands.add_parser("cascade", help="what closing all copies of a master would do, or did")
    cascade.add_argument("master", nargs="?", metavar="MASTER")
    what = cascade.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="what would be closed, by the quotes of now; does nothing")
    what.add_argument("--list", action="store_true", dest="lists", help="which are running, and which have ended")
    what.add_argument("--show", metavar="ID", help="one of them, follower by follower")
    cascade.add_argument("--json", action="store_true", help="everything, as JSON")


@contextmanager
def _opened(settings: Settings) -> Iterator[Pipe]:
    if settings.redis.url is None:
        raise ConfigError("cascade: say which server with --redis")
    client = client_of(settings, settings.redis.url)
    pipe = Pipe(client)
    try:
        yield pipe
    finally:
        pipe.close()
        client.close()


def _cascade(settings: Settings, options: argparse.Namespace) -> int:
    if not (options.dry_run or options.lists or options.show) or options.dry_run is not (options.master is not None):
        raise ConfigError("say what: cascade MASTER --dry-run, cascade --list, or cascade --show ID")
    with _opened(settings) as pipe:
        if options.lists:
            found: Any = list_cascades(Cascades(pipe))
            lines = [_listed(one) for one in found] or ["no cascade is running, and none has ended"]
        elif options.show is not None:
            found = _shown(Cascades(pipe), options.show)
            lines = _shown_lines(found)
        else:
            found = _planned(pipe, settings, check_master(options.master))
            lines = _planned_lines(found)
    for line in [json.dumps(found, indent=1)] if options.json else [printable(line, _SHOWN_CHARS) for line in lines]:
        print(line)
    return 0


# ---- what one would do


@dataclass(slots=True)
class _Member:
    """A follower, and what stands in its account."""

    name: str
    copies: CopiesOf
    config: Sequence[bytes | None]
    orders: dict[str, Sequence[bytes | None]] = field(default_factory=dict)
    closes: list[PlannedClose] = field(default_factory=list)


def _planned(pipe: Pipe, settings: Settings, master_id: str) -> dict[str, Any]:
    """What a cascade of this master would close.

    Raises
    ------
    Refused
        `unknown_master`, `no_followers`, `followers_unreadable`, `cascade_running`.
    """
    master = Account(AccountType.MASTER, master_id)
    there = read_members(pipe, master)
    if not there.has_master:
        raise Refused(f"there is no master {master_id}", code="unknown_master")
    running = Cascades(pipe).running().get(master_id)
    if running is not None:
        raise Refused(f"a cascade of {master_id} is running: {running}", code="cascade_running")
    if not there.followers and not there.invalid:
        raise Refused(f"nobody copies {master_id} now", code="no_followers")
    members: list[_Member] = []
    owners: dict[str, bool] = {}
    for start in range(0, len(there.followers), _AT_ONCE):
        members += _read(pipe, master_id, there.followers[start : start + _AT_ONCE], owners)
    now, after = _valued(pipe, settings, members)
    rows = [_member_facts(one, now[i], after[i]) for i, one in enumerate(members)]
    rows += [{"follower": name, "code": "invalid_account_id"} for name in there.invalid]
    every = [close for one in members for close in one.closes]
    total = None if any(one.get("code") for one in rows) else total_usd(every)
    return {
        "master": master_id,
        "followers": rows,
        "copies": len(every),
        "lots": _texts(lots_by_symbol(every)),
        "result_usd": None if total is None else money_text(total),
    }


def _read(pipe: Pipe, master_id: str, names: Sequence[str], owners: dict[str, bool]) -> list[_Member]:
    found, _ = find_copies(pipe, master_id, names, owners)
    accounts = [account_of(name) for name in names]
    configs = ask(pipe, [pack("HMGET", keys.config(one), *fields.ACCOUNT_COLUMNS.fields) for one in accounts])
    indexes = ask(pipe, [pack("SMEMBERS", keys.orders_index(one)) for one in accounts])
    blank = [None] * len(fields.ACCOUNT_COLUMNS.fields)
    members = [_Member(name, found[name], config or blank) for name, config in zip(names, configs, strict=True)]
    asked = [(one, text(own)) for one, ids in zip(members, indexes, strict=True) for own in ids or ()]
    wanted = fields.ORDER_COLUMNS.fields
    rows = ask(pipe, [pack("HMGET", keys.holding(account_of(one.name), own), *wanted) for one, own in asked])
    for (one, own), row in zip(asked, rows, strict=True):
        one.orders[own] = row or [None] * len(wanted)
    return members


def _valued(pipe: Pipe, settings: Settings, members: Sequence[_Member]) -> tuple[Rows, Rows]:
    """Plan the closes of all members; (n,) Figures of them now, and afterwards (unknown where a result is)."""
    rules = settings.rules()
    markets = Markets(pipe, Filler(pipe, None), rules, settings.hours(), settings.lots())
    market, names, columns = markets.market, markets.market.names, markets.columns
    judged = fields.judge_accounts(columns.rows(fields.ACCOUNT_COLUMNS, [one.config for one in members]), names)
    groups = judged["group"].tolist()
    place = [(i, own) for i, one in enumerate(members) for own in one.orders]
    read = fields.judge_orders(columns.rows(fields.ORDER_COLUMNS, [members[i].orders[own] for i, own in place]), names)
    orders: Rows = np.zeros(len(place), layout.ORDER)
    for name in ("lots", "price", "fees_usd", "effect", "is_buy", "code"):
        orders[name] = read[name]
    orders["account"], orders["next"] = [i for i, _ in place], -1
    symbols = zip(place, read["symbol"].tolist(), strict=True)
    orders["instrument"] = [
        market.instrument_of(groups[i], symbol) if symbol >= 0 else -1 for (i, _), symbol in symbols
    ]

    def instrument(i: int, order: Order) -> int:
        return market.instrument_of(groups[i], names.index.put(order.symbol.encode()))

    asked = {instrument(i, order) for i, one in enumerate(members) for order in one.copies.orders.values()}
    markets.read(sorted({*asked, *orders["instrument"].tolist()} - {-1}))
    for i, one in enumerate(members):
        one.closes = [plan_close(order, markets.of(instrument(i, order))) for order in one.copies.orders.values()]
    accounts: Rows = np.zeros(len(members), layout.ACCOUNT)
    accounts["balance"], accounts["leverage"] = judged["balance"], judged["leverage"]
    accounts["read_code"], accounts["culprit"] = judged["code"], -1
    side = CONVERSION_SIDES[rules.rate_side]
    now = value_now(accounts.copy(), orders, market, side, nets_orders=rules.nets_orders)
    results = [None if one.copies.code else total_usd(one.closes) for one in members]
    accounts["balance"] += [np.nan if result is None else float(result) for result in results]
    is_left = np.array([own not in members[i].copies.orders for i, own in place], np.bool_)
    return now, value_now(accounts, orders[is_left], market, side, nets_orders=rules.nets_orders)


def _member_facts(one: _Member, now: Any, after: Any) -> dict[str, Any]:
    total = None if one.copies.code else total_usd(one.closes)
    return {
        "follower": one.name,
        "code": one.copies.code,
        "copies": [
            {
                **close._asdict(),
                "lots": decimal_text(close.lots),
                "result_usd": None if close.result_usd is None else money_text(close.result_usd),
            }
            for close in one.closes
        ],
        "lots": _texts(lots_by_symbol(one.closes)),
        "result_usd": None if total is None else money_text(total),
        "now": _figures(now),
        "after": _figures(after) if total is not None else None,
    }


def _figures(figures: Any) -> dict[str, str | None] | None:
    """Equity, and the level if margin is used; `None`: not known."""
    equity, used = float(figures["equity"]), float(figures["used_margin_executed"])
    if not are_known(figures["code"].reshape(1))[0] or not np.isfinite([equity, used]).all():
        return None
    level = fields.usd_text(float(figures["margin_level_pct"])) if used > 0.0 else None
    return {"equity_usd": fields.usd_text(equity), "level_pct": level}


def _texts(lots: Mapping[str, Any]) -> dict[str, str]:
    return {symbol: decimal_text(amount) for symbol, amount in lots.items()}


def _planned_lines(plan: Mapping[str, Any]) -> list[str]:
    lines = []
    for one in plan["followers"]:
        copies = one.get("copies") or ()
        why = [one["code"]] if one["code"] else [] if copies else ["flat"]
        told = ["1 copy" if len(copies) == 1 else f"{len(copies)} copies", _lots(one["lots"])] if copies else []
        reasons = sorted({close["code"] for close in copies if close["result_usd"] is None})
        if copies or "now" in one:
            told += [f"result {_usd(one['result_usd'], reasons)}", f"{_state(one['now'])} -> {_state(one['after'])}"]
        lines.append("  ".join([one["follower"], *why, *filter(None, told)]))
    lots = _lots(plan["lots"]) or "no lots"
    lines.append(f"{len(plan['followers'])} followers of {plan['master']}, {plan['copies']} copies: {lots}")
    lines.append(f"expected result {_usd(plan['result_usd'])}; nothing was done")
    return lines


def _lots(lots: Mapping[str, str]) -> str:
    return ", ".join(f"{symbol} {amount}" for symbol, amount in lots.items())


def _usd(amount: str | None, reasons: Sequence[str] = ()) -> str:
    return f"{amount} USD" if amount is not None else " ".join(("unknown", *(f"({code})" for code in reasons)))


def _state(figures: Mapping[str, Any] | None) -> str:
    if figures is None:
        return "unknown"
    level = figures["level_pct"]
    return f"equity {figures['equity_usd']}, {'no margin used' if level is None else f'level {level} %'}"


# ---- what was done


def list_cascades(cascades: Cascades) -> list[dict[str, Any]]:
    """Those that are running, and the last ones that have ended."""
    found: list[dict[str, Any]] = []
    running = sorted(cascades.running().values())
    for cascade_id in [*running, *cascades.finished(_LISTED)]:
        try:
            cascade = cascades.load(cascade_id, is_full=cascade_id in running)  # others say how they ended
        except CopyriskError as failure:
            found.append({"id": cascade_id, "state": failure.code})
            continue
        if cascade is not None:  # what has ended is kept for some time only
            found.append(cascade_facts(cascade))
    return found


def _listed(one: Mapping[str, Any]) -> str:
    if "master" not in one:
        return f"{one['id']}  {one['state']}"
    ends = ", ".join(f"{one.get(name)} {name}" for name in ("done", "flat", "failed"))
    took = f"  in {one.get('duration_ms')} ms"
    told = f"{one['id']}  {one['master']}  {one['state']}  {one.get('followers')} followers: {ends}"
    return told if one["state"] == "running" else f"{told}  {_usd(one.get('result_usd'))}{took}"


def _shown(cascades: Cascades, cascade_id: str) -> dict[str, Any]:
    cascade = cascades.load(cascade_id)
    if cascade is None:
        raise Refused("there is no such cascade, or it is not kept any more", code="cascade_unknown")
    standings = {name: standing_facts(one) for name, one in sorted(cascade.standings.items())}
    return {**cascade_facts(cascade), "said": dict(cascade.said), "standings": standings}


def standing_facts(one: Standing) -> dict[str, Any]:
    """Where a follower stands."""
    return {
        "stage": one.stage.value,
        "copies": list(one.copies),
        "closed": one.closed,
        "cancelled": one.cancelled,
        "unknown": one.unknown,
        "lots": decimal_text(one.lots),
        "result_usd": None if one.result_usd is None else money_text(one.result_usd),
        "code": one.code,
        "first_ms": one.first_ms or None,
        "last_ms": one.last_ms or None,
    }


def _shown_lines(found: Mapping[str, Any]) -> list[str]:
    lines = [_listed(found), json.dumps(found["said"], sort_keys=True)]
    for name, one in found["standings"].items():
        told = [name, one["stage"], *([one["code"]] if one["code"] else [])]
        if one["stage"] in ("done", "failed"):
            counts = ", ".join(f"{one[part]} {part}" for part in ("closed", "cancelled", "unknown") if one[part])
            told += filter(None, (counts, f"{one['lots']} lots", _usd(one["result_usd"])))
        lines.append("  ".join(told))
    return lines


CASCADES: dict[str, Callable[[Settings, argparse.Namespace], int]] = {"cascade": _cascade}
