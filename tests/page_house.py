"""A server for the desk's page with invented figures: the real pages and answers, the shapes of the API, no store.

What it sends can be changed while a browser looks at it: figures, silence, broken streams, credentials that end.
"""

import asyncio
import json
import math
import random
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from copyrisk.api.answers import ApiError, success
from copyrisk.api.app import make_app
from copyrisk.api.pages import static_routes

TOKEN = "good-token"
SYMBOLS = {
    "EURUSD": (1.08450, 1.08462),
    "GBPUSD": (1.26711, 1.26730),
    "USDJPY": (151.223, 151.241),
    "XAUUSD": (2331.42, 2331.87),
    "BTCUSD": (64210.5, 64238.0),
}
MOVES_PCT = (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 5, 7.5, 10, 15, 20, 30, 50)
EDGES_PCT = (0, 10, 20, 50, 75, 100, 150, 200, 300, 500, 1000)
_STEP_S = 0.02
_TYPES = ("live", "demo", "strategy_provider", "copy_follower")


# ---- invented figures


def invented_summary() -> dict[str, Any]:
    """A house of 1,000 accounts on a lively day."""
    chance = random.Random(7)
    closest = []
    for number in range(25):
        level = round(8.2 + number * 2.9 + chance.random(), 2)
        state = "critical" if level <= 10 else "warning" if level <= 50 else "healthy"
        margin = round(chance.uniform(300, 9_000), 2)
        kind = _TYPES[number % 4]
        closest.append(
            {
                "account": f"{kind}:{1000 + 37 * number}",
                "state": state,
                "margin_level_pct": level,
                "warning_level_pct": 50.0,
                "critical_level_pct": 10.0,
                "equity_usd": round(margin * level / 100, 2),
                "used_margin_usd": margin,
                "open_pnl_usd": round(-chance.uniform(100, 20_000), 2),
            }
        )
    by_type = {
        "live": {"unknown": 2, "no_margin": 88, "healthy": 402, "warning": 6, "critical": 1},
        "demo": {"unknown": 0, "no_margin": 120, "healthy": 128, "warning": 2, "critical": 0},
        "strategy_provider": {"unknown": 0, "no_margin": 3, "healthy": 46, "warning": 1, "critical": 0},
        "copy_follower": {"unknown": 1, "no_margin": 11, "healthy": 183, "warning": 5, "critical": 1},
    }
    return {
        "tick": {"ts": 0, "age_ms": 140, "duration_ms": 24.6, "late_ticks": 0, "period_ms": 200},
        "accounts": {"total": 1000, "by_type": by_type},
        "totals": {"equity_usd": 18_402_113.52, "used_margin_usd": 6_120_994.1, "open_pnl_usd": -211_038.77},
        "histogram": {"edges_pct": list(EDGES_PCT), "counts": [0, 2, 3, 11, 18, 26, 61, 84, 147, 208, 181, 34]},
        "closest": closest,
        "unknown": {"quote_stale": 2, "wallet_balance_invalid": 1},
        "cascades": [
            cascade("c-17-1", "17", 1000, 640, 2),
            cascade("c-42-9", "42", 24, 3, 0),
        ],
        "replication": {
            "events": 118,
            "copies": 4_811,
            "skipped": 96,
            "failed": 0,
            "p50_ms": 20,
            "p99_ms": 100,
            "slow_copies": 0,
            "last_event_ms": time.time_ns() // 1_000_000 - 1_900,
        },
        "halted": [],
        "book_age_ms": 310,
    }


def cascade(own_id: str, master: str, followers: int, done: int, failed: int) -> dict[str, Any]:
    """One that runs."""
    started_ms = time.time_ns() // 1_000_000 - 4_200
    return {
        "id": own_id,
        "master": master,
        "state": "running",
        "started_ms": started_ms,
        "finished_ms": None,
        "followers": followers,
        "done": done,
        "flat": 0,
        "failed": failed,
    }


def entry(seq: int, kind: str, account: str, reason: str, **said: Any) -> dict[str, Any]:
    """An entry of the trail."""
    ts_ms = time.time_ns() // 1_000_000 - 1_000 * (2_000 - seq)
    return {
        "seq": seq,
        "ts_ms": ts_ms,
        "kind": kind,
        "account": account,
        "cause": f"tick {seq * 5}",
        "reason": reason,
        "said": said,
    }


def invented_entries() -> list[dict[str, Any]]:
    """120 of them: warnings, closes that are planned and what came of them, a cascade."""
    figures = {"level_pct": 9.31, "equity_usd": 102.44, "warning_level_pct": 50.0, "critical_level_pct": 10.0}
    plan = [{"order_id": "O7", "lots": None, "is_cancel": False}, {"order_id": "O8", "lots": None, "is_cancel": True}]
    results = [
        {"order_id": "O7", "result": "closed", "lots": "0.50", "price": "1.08321", "result_usd": "-120.50"},
        {"order_id": "O8", "result": "cancelled"},
    ]
    ended = {"followers": 24, "done": 18, "flat": 5, "failed": 1, "closed": 31, "lots": "12.40"}
    turns: list[tuple[str, str, dict[str, Any]]] = [
        ("liquidation", "level_at_or_below_critical", {"figures": figures, "plan": plan}),
        ("liquidation", "done", {"results": results}),
        *[("warning", "level_at_or_below_warning", {"figures": {**figures, "level_pct": 48.2}})] * 3,
    ]
    entries = []
    for seq in range(1, 121):
        kind, reason, said = turns[seq % 5]
        account = f"{_TYPES[seq % 4]}:{1000 + 37 * (seq % 25)}"
        if seq == 118:
            kind, reason, account = "cascade", "cascade_ends", "strategy_provider:42"
            said = {**ended, "result_usd": "-1204.75", "duration_ms": 1840}
        entries.append(entry(seq, kind, account, reason, **said))
    return entries


def invented_portfolio() -> dict[str, Any]:
    """Of an account that does well enough."""
    now_ms = time.time_ns() // 1_000_000
    return {
        "account": "live:17",
        "state": "known",
        "equity_usd": 9_871.22,
        "balance_usd": 10_000.0,
        "free_margin_usd": 8_786.7,
        "used_margin_usd": 1_084.52,
        "used_margin_executed_usd": 1_084.52,
        "margin_level_pct": 910.19,
        "open_pnl_usd": -128.78,
        "calc_status": "ok",
        "degraded_fields": [],
        "ts_ms": now_ms,
        "valued_ts_ms": now_ms,
        "as_of_ms": now_ms,
    }


def invented_orders() -> list[dict[str, Any]]:
    """A position, a short one, and one that waits."""
    rows = (
        ("O1", "EURUSD", "BUY", "1.00", "1.08580", "OPEN", "1.08000", "1.09500"),
        ("O2", "XAUUSD", "SELL", "0.25", "2329.90", "OPEN", None, None),
        ("O3", "GBPUSD", "BUY_LIMIT", "0.50", "1.25500", "PENDING", "1.25000", None),
    )
    names = (
        "order_id",
        "symbol",
        "order_type",
        "order_quantity",
        "order_price",
        "order_status",
        "stop_loss",
        "take_profit",
    )
    fixed = {"margin": "361.50", "commission": "3.50", "swap": "-0.42", "master_order_id": None}
    return [{**dict(zip(names, row, strict=True)), **fixed} for row in rows]


def invented_history() -> list[dict[str, Any]]:
    """How its first position came about."""
    now_ms = time.time_ns() // 1_000_000
    opened = {"event": "order.opened", "change": "opened", "order_id": "O1", "code": "ok", "balance": "10000.00"}
    refused = {"event": "order.refused", "order_id": "O9", "code": "insufficient_margin"}
    return [
        {"id": f"{now_ms - at}-0", "ts_ms": now_ms - at, **said}
        for at, said in ((60_000, refused), (3_600_000, opened))
    ]


def cascade_page(cascade_id: str) -> dict[str, Any]:
    """A cascade and its followers."""
    now_ms = time.time_ns() // 1_000_000
    facts = {
        "id": cascade_id,
        "master": "17",
        "state": "running",
        "started_ms": now_ms - 4_200,
        "finished_ms": None,
        "followers": 3,
        "done": 1,
        "flat": 0,
        "failed": 1,
        "waiting": 0,
        "duration_ms": None,
        "result_usd": None,
    }
    stages = (("1", "done", "", "-120.50"), ("2", "closing", "", None), ("3", "failed", "account_missing", None))
    rows = [
        {"follower": name, "stage": stage, "code": code, "closed": 1, "lots": "0.50", "result_usd": result}
        for name, stage, code, result in stages
    ]
    return {"cascade": facts, "followers": rows, "next": None}


def rung(direction: str, move_pct: float, middle: float) -> dict[str, Any]:
    """Cumulative: more, the further out."""
    sign = -1 if direction == "down" else 1
    warned = round(160 / (1 + math.exp(-(move_pct - (6 if sign < 0 else 9)) / 2)) - (5 if sign < 0 else 1))
    closed = max(0, round(warned * 0.7) - 6)
    return {
        "direction": direction,
        "move_pct": sign * move_pct,
        "price": round(middle * (1 + sign * move_pct / 100), 5),
        "warning": {"accounts": max(0, warned), "lots": round(max(0, warned) * 1.7, 2)},
        "critical": {"accounts": closed, "lots": round(closed * 1.6, 2)},
    }


def ladder_of(symbol: str) -> dict[str, Any]:
    """A ladder of a symbol."""
    bid, ask = SYMBOLS[symbol]
    down, up = ([rung(way, move_pct, bid) for move_pct in MOVES_PCT] for way in ("down", "up"))
    kinds = ("warning", "critical")
    nearest = [
        {
            "account": f"live:{1000 + 37 * at}",
            "kind": kinds[at % 2],
            "price": round(bid * (1 - 0.001 * (at + 1)), 5),
            "move_pct": -0.1 * (at + 1),
            "lots": 0.5,
        }
        for at in range(25)
    ]
    return {
        "symbol": symbol,
        "bid": bid,
        "ask": ask,
        "now_ms": time.time_ns() // 1_000_000,
        "accounts": 212,
        "lots": 431.57,
        "unknown": 2,
        "closed": 1,
        "already": {"warning": 5, "critical": 1},
        "rungs": [*down, *up],
        "nearest": nearest,
    }


def overview_of_ladder() -> dict[str, Any]:
    """The nearest crossing of each symbol; one of them has none upwards."""
    rows = []
    for at, (symbol, (bid, ask)) in enumerate(SYMBOLS.items()):
        crossing = {
            kind: {"price": round(bid * (1 - step / 100), 5), "move_pct": -step}
            for kind, step in (("warning", 0.4 + at), ("critical", 1.1 + at))
        }
        rows.append(
            {
                "symbol": symbol,
                "bid": bid,
                "ask": ask,
                "accounts": 212 - 30 * at,
                "lots": round(431.57 / (at + 1), 2),
                "down": crossing,
                "up": {"warning": None, "critical": None},
            }
        )
    return {"now_ms": time.time_ns() // 1_000_000, "symbols": rows}


def what_if_of(moves: dict[str, str]) -> dict[str, Any]:
    """What such moves would do."""
    lines = [
        {"account": f"live:{1000 + 37 * at}", "margin_level_pct": 44.1 - at, "equity_usd": 812.5 - 40 * at}
        for at in range(6)
    ]
    closed = [
        {
            "account": f"live:{2000 + at}",
            "margin_level_pct": 7.4 - 3 * at,
            "equity_usd": 91.4 - 60 * at,
            "closes": 2,
            "lots": 1.5,
            "level_after_pct": None if at else 61.3,
            "equity_after_usd": 91.4 - 60 * at,
        }
        for at in range(4)
    ]
    return {
        "now_ms": time.time_ns() // 1_000_000,
        "moves": moves,
        "before": {"unknown": 3, "no_margin": 222, "healthy": 759, "warning": 14, "critical": 2},
        "after": {"unknown": 3, "no_margin": 222, "healthy": 731, "warning": 38, "critical": 6},
        "warned": {"count": 240, "accounts": lines},
        "liquidated": {"count": 4, "accounts": closed},
        "cascades": {
            "count": 120,
            "list": [{"master_id": "17", "followers": 3, "copies": 9, "lots": 2.4, "list": ["1", "2", "3"]}],
        },
        "equity": {
            "before_usd": 18_402_113.52,
            "after_usd": 17_120_004.1,
            "negative_usd": -88.6,
            "negative_accounts": 2,
        },
        "unknown": 3,
        "closed": 2,
    }


# ---- the server's state


@dataclass(slots=True)
class PageHouse:
    """What the page is told.

    Attributes
    ----------
    summary : dict
        As in the answer of `/api/risk/summary`, without its time.
    backlog : int
        So many older summaries, a second apart, are sent to who connects.
    is_silent, is_cut, is_limited, has_trail : bool
        Nothing is sent on streams; streams end and new ones are refused; the caller may not see the house; may read
        the audit trail.
    entries : list of dict
        Audit trail, oldest first.
    silent_steps : int
        For so many turns nothing was sent.
    asked : list of str
        Paths with queries, as they came.
    """

    url: str = ""
    summary: dict[str, Any] = field(default_factory=invented_summary)
    entries: list[dict[str, Any]] = field(default_factory=invented_entries)
    portfolio: dict[str, Any] = field(default_factory=invented_portfolio)
    orders: list[dict[str, Any]] = field(default_factory=invented_orders)
    history: list[dict[str, Any]] = field(default_factory=invented_history)
    tokens: set[str] = field(default_factory=lambda: {TOKEN})
    backlog: int = 0
    period_s: float = 0.1
    is_silent: bool = False
    is_cut: bool = False
    is_limited: bool = False
    has_trail: bool = True
    silent_steps: int = 0
    asked: list[str] = field(default_factory=list)
    last_ids: list[str | None] = field(default_factory=list)
    is_over: bool = False

    def told(self, ago_ms: int = 0) -> dict[str, Any]:
        """The summary as of now, or of then."""
        now_ms = time.time_ns() // 1_000_000 - ago_ms
        told = {**self.summary, "now_ms": now_ms}
        if ago_ms and told["tick"]:
            wave = math.sin(ago_ms / 23_000) + math.sin(ago_ms / 7_000) / 3 + random.Random(ago_ms).random()
            told["tick"] = {**told["tick"], "duration_ms": round(22 + 6 * wave, 1)}
            told["replication"] = {**told["replication"], "p50_ms": 20, "p99_ms": 50 if wave < 1 else 100}
        return told


# ---- routes


def _page(rows: list[dict[str, Any]], before: int | None, limit: int) -> tuple[list[dict[str, Any]], int | None]:
    chosen = [row for row in reversed(rows) if before is None or row["seq"] < before]
    return chosen[:limit], (chosen[limit - 1]["seq"] if len(chosen) > limit else None)


def figure_routes(house: PageHouse) -> APIRouter:
    """The reads that the page asks for."""
    router = APIRouter()

    def admit(request: Request) -> None:
        house.asked.append(str(request.url)[len(house.url) :])
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if given not in house.tokens:
            raise ApiError("this token has expired", code="expired_token")

    @router.get("/api/stream")
    async def stream(request: Request, topics: str, accounts: str = "") -> Response:
        admit(request)
        if house.is_cut:
            raise ApiError("the store is away", code="store_unavailable")
        if house.is_limited and "summary" in topics:
            raise ApiError("not all accounts are yours", code="account_forbidden")
        house.last_ids.append(request.headers.get("last-event-id"))
        return StreamingResponse(_events(house, request, topics, accounts), media_type="text/event-stream")

    @router.get("/api/audit")
    async def audit(
        request: Request,
        limit: int,
        kind: str = "",
        account: str = "",
        from_ms: int = 0,
        to_ms: int = 0,
        before: int | None = None,
    ) -> Response:
        admit(request)
        if not house.has_trail:
            raise ApiError("this needs audit:read", code="missing_scope")
        rows = [row for row in house.entries if kind in ("", row["kind"]) and account in ("", row["account"])]
        rows = [row for row in rows if row["ts_ms"] >= from_ms and (not to_ms or row["ts_ms"] <= to_ms)]
        entries, older = _page(rows, before, limit)
        return success({"entries": entries, "next": older, "looked_at": len(entries), "unreadable": 0})

    @router.get("/api/portfolios/{user_type}/{user_id}")
    async def portfolio(request: Request, user_type: str, user_id: str) -> Response:
        admit(request)
        if user_id == "404":
            raise ApiError(f"there is no account {user_type}:{user_id}", code="unknown_account")
        streamed = house.portfolio
        renamed = {name.removesuffix("_usd").removesuffix("_pct"): value for name, value in streamed.items()}
        return success({**renamed, "valued_ts": streamed["valued_ts_ms"], "last_known": None})

    @router.get("/api/orders")
    async def orders(request: Request, user_type: str, user_id: str, limit: int) -> Response:
        admit(request)
        return success({"orders": house.orders, "count": len(house.orders), "next": None})

    @router.get("/api/cascades/{cascade_id}")
    async def one_cascade(request: Request, cascade_id: str, limit: int) -> Response:
        admit(request)
        return success(cascade_page(cascade_id))

    @router.get("/api/accounts/{user_type}/{user_id}/history")
    async def history(
        request: Request, user_type: str, user_id: str, limit: int, before: str | None = None
    ) -> Response:
        admit(request)
        return success({"entries": house.history, "next": None})

    @router.get("/api/risk/ladder")
    async def ladder(request: Request) -> Response:
        admit(request)
        return success(overview_of_ladder())

    @router.get("/api/risk/ladder/{symbol}")
    async def ladder_of_symbol(request: Request, symbol: str) -> Response:
        admit(request)
        if symbol not in SYMBOLS:
            raise ApiError(f"nobody holds {symbol}", code="unknown_symbol")
        return success(ladder_of(symbol))

    @router.post("/api/risk/what-if")
    async def what_if(request: Request) -> Response:
        admit(request)
        moves = (await request.json())["moves"]
        unheld = set(moves) - set(SYMBOLS)
        if unheld:
            raise ApiError(f"nobody holds {min(unheld)}", code="unknown_symbol")
        return success(what_if_of(moves))

    return router


async def _events(house: PageHouse, request: Request, topics: str, accounts: str) -> AsyncIterator[str]:
    def event(name: str, data: Any, own_id: int | None = None) -> str:
        place = "" if own_id is None else f"id: {own_id}.0-0\n"
        return f"event: {name}\n{place}data: {json.dumps(data)}\n\n"

    told, last_s, shown = len(house.entries), 0.0, None
    yield event("begin", {"topics": topics.split(","), "accounts": None}, told)
    if "summary" in topics:
        for ago in range(house.backlog, 0, -1):
            yield event("summary", house.told(ago * 1_000))
    while not (house.is_over or house.is_cut or await request.is_disconnected()):
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if given not in house.tokens:
            yield event("end", {"code": "expired_token", "message": "this token has expired"})
            return
        house.silent_steps = house.silent_steps + 1 if house.is_silent else 0
        if not house.is_silent:
            if "summary" in topics and time.monotonic() - last_s > house.period_s:
                last_s = time.monotonic()
                yield event("summary", house.told())
            for one in house.entries[told:]:
                yield event("breaches", one, one["seq"])
            told = len(house.entries)
            if "portfolios" in topics and house.portfolio != shown:
                shown = dict(house.portfolio)
                yield event("portfolios", {**shown, "account": accounts})
        await asyncio.sleep(_STEP_S)


@contextmanager
def page_house(**given: Any) -> Iterator[PageHouse]:
    """The server, for as long as the block lasts."""
    house = PageHouse(**given)
    listening = socket.create_server(("127.0.0.1", 0))
    house.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    app = make_app([static_routes(), figure_routes(house)])
    config = uvicorn.Config(app, lifespan="off", ws="none", access_log=False, log_config=None, loop="asyncio")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield house
    finally:
        house.is_over = server.should_exit = True
        thread.join(10)
