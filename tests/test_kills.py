"""The kill switch without a server: its grammar, what it forbids, what it closes."""

import json
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copyrisk import identifiers
from copyrisk.errors import InvalidId, Refused
from copyrisk.kills import (
    NO_KILLS,
    KillPolicy,
    Kills,
    Scope,
    ScopeKind,
    kill_text,
    orders_in,
    orders_to_close,
    orders_without_symbol,
    parse_kills,
    parse_scope,
    unreadable_switch,
)
from copyrisk.rules import ValuationRules
from tests.books import PlainBook, fill_account, fill_market

EURUSD = {"symbol": "EURUSD", "bid": "1.1", "ask": "1.1001", "contract_size": "100000", "profit": "USD", "type": "1"}
CONFIG = {"wallet_balance": "1000", "leverage": "100"}


def kill(policy: str = "keep", reason: str = "why") -> str:
    return kill_text(KillPolicy(policy), reason, "op", 1_700_000_000_000)


def code(kills: Kills, account: str, symbol: str, *masters: str) -> str:
    refusal = kills.refusal(identifiers.parse_account(account), symbol, masters)
    return "" if refusal is None else refusal.code


# ---- grammar


@pytest.mark.parametrize("text", ["all", "account:live:1", "master:M-1", "symbol:EURUSD.X#"])
def test_a_scope_is_what_it_says(text: str) -> None:
    assert str(parse_scope(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "ALL",
            " all",
            "all ",
            "all:",
            "all:x",
            "everything",
            "account",
            "account:",
            "account:live",
            "account:x:1",
        ),
        *(
            "account:live:",
            "account:live:1:2",
            "account:live:{1}",
            "account:live:1\n",
            "master:",
            "master:M N",
            "symbol:",
        ),
        *("symbol:eurusd", "symbol:EURUSD\n", "symbol:ＥＵＲ", "master:" + "m" * 65, "live:1", "x" * 10_000),
    ],
)
def test_no_scope(text: str) -> None:
    with pytest.raises(InvalidId) as refusal:
        parse_scope(text)
    assert len(str(refusal.value)) < 200 and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "stored",
    [
        *("", "x", "1", "null", "[]", '"keep"', "{}", '{"policy":"keep"}', "[" * 100_000, "9" * 5_000),
        json.dumps({"policy": "burn", "reason": "", "by": "", "ts_ms": 1}),
        json.dumps({"policy": "close", "reason": 1, "by": "", "ts_ms": 1}),
        json.dumps({"policy": "close", "reason": "", "by": "", "ts_ms": True}),
        json.dumps({"policy": "close", "reason": "", "by": "", "ts_ms": -1}),
        json.dumps({"policy": "close", "reason": "", "by": "", "ts_ms": 1e30}),
        kill("close")[:-1],
    ],
)
def test_an_entry_that_cannot_be_read_halts_and_closes_nothing(stored: str) -> None:
    kills = parse_kills({"symbol:EURUSD": stored})
    assert (code(kills, "live:1", "EURUSD"), code(kills, "live:1", "GBPUSD")) == ("trading_halted", "")
    assert (kills.closing(), len(kills.unreadable)) == ([], 1)


@pytest.mark.parametrize("scope", ["ALL", "symbol:eurusd", "account:live:1 ", ""])
def test_a_scope_that_is_none_halts_everybody_and_closes_nothing(scope: str) -> None:
    kills = parse_kills({scope: kill("close"), "master:M": kill()})
    assert code(kills, "demo:7", "XAUUSD") == "kill_switch_unreadable"
    assert kills.closing() == []
    assert [one.scope for one in kills.every()] == [scope, "master:M"]


def test_a_switch_that_cannot_be_read_halts_everybody() -> None:
    kills = unreadable_switch("WRONGTYPE " + "x" * 1000)
    assert code(kills, "live:1", "EURUSD") == "kill_switch_unreadable"
    assert (kills.closing(), kills.of_all("EURUSD") is kills.fault) == ([], True)
    assert len(str(kills.fault)) < 200


def test_a_refusal_names_scope_and_reason_in_one_line() -> None:
    kills = parse_kills({"symbol:EURUSD": json.dumps({"policy": "keep", "reason": "bad\nfeed", "by": "x", "ts_ms": 1})})
    refusal = kills.of_all("EURUSD")
    assert isinstance(refusal, Refused)
    assert str(refusal) == "no new orders, symbol:EURUSD is halted: bad?feed"


# ---- what is forbidden

OF = {
    "all": lambda account, symbol, masters: True,
    "account:live:1": lambda account, symbol, masters: account == "live:1",
    "account:strategy_provider:M": lambda account, symbol, masters: account == "strategy_provider:M",
    "master:M": lambda account, symbol, masters: account == "strategy_provider:M" or "M" in masters,
    "symbol:EURUSD": lambda account, symbol, masters: symbol == "EURUSD",
}
ACCOUNTS = ("live:1", "live:2", "demo:1", "strategy_provider:M", "strategy_provider:N", "copy_follower:M", "live:M")


@pytest.mark.parametrize("scope", OF)
def test_a_kill_forbids_what_is_in_its_scope_and_nothing_else(scope: str) -> None:
    kills = parse_kills({scope: kill()})
    for account, symbol, masters in product(ACCOUNTS, ("EURUSD", "GBPUSD"), ((), ("M",), ("N",), ("N", "M"))):
        expected = "trading_halted" if OF[scope](account, symbol, masters) else ""
        assert code(kills, account, symbol, *masters) == expected, (account, symbol, masters)
    assert (kills.of_all("EURUSD", "M") is None) == scope.startswith("account")


@settings(max_examples=100, deadline=None)
@given(st.sets(st.sampled_from(sorted(OF))), st.sampled_from(ACCOUNTS), st.sampled_from(["EURUSD", "GBPUSD"]))
def test_kills_add_up(scopes: set[str], account: str, symbol: str) -> None:
    kills = parse_kills(dict.fromkeys(scopes, kill()))
    assert bool(code(kills, account, symbol)) == any(OF[scope](account, symbol, ()) for scope in scopes)
    assert sorted(one.scope for one in kills.every()) == sorted(scopes)


def test_without_kills_everybody_may_trade() -> None:
    assert parse_kills({}) == NO_KILLS
    assert code(NO_KILLS, "live:1", "EURUSD", "M") == ""


# ---- what is closed


def book_of(held: dict[str, list[str]]) -> PlainBook:
    """Accounts with an order on each of some symbols; of the empty one nothing is known."""
    book = PlainBook(ValuationRules())
    fill_market(book, [EURUSD, EURUSD | {"symbol": "GBPUSD"}, EURUSD | {"symbol": "XAUUSD"}])
    fill_market(book, [EURUSD], group="VIP")
    for account, symbols in held.items():
        config = CONFIG | ({"group": "VIP"} if account.startswith("live") else {})
        lots = {"order_type": "BUY", "order_price": "1.1", "order_quantity": "1"}
        fill_account(book, account, config, [lots | ({"symbol": symbol} if symbol else {}) for symbol in symbols])
    return book


def in_scope_slowly(book: PlainBook, scopes: list[Scope]) -> list[int]:
    found = []
    for account, row in book.accounts_held().items():
        for order_row in book.orders_of(row).values():
            instrument = int(book.orders[order_row]["instrument"])
            symbol = book.market.instrument_keys[instrument].symbol if instrument >= 0 else None
            names = {("all", ""), ("account", account), ("symbol", symbol)}
            if account.startswith("strategy_provider:"):
                names.add(("master", account.partition(":")[2]))
            if any((scope.kind.value, scope.name) in names for scope in scopes):
                found.append(order_row)
    return sorted(found)


SCOPES = (
    "all",
    "account:live:1",
    "account:live:9",
    "master:M",
    "master:Z",
    "symbol:EURUSD",
    "symbol:GBPUSD",
    "symbol:NONE",
)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(ACCOUNTS), st.lists(st.sampled_from(["EURUSD", "GBPUSD", "XAUUSD", ""]), max_size=4), max_size=5
    ),
    st.sets(st.sampled_from(SCOPES)),
    st.sampled_from(ACCOUNTS),
)
def test_what_is_closed_is_what_a_slow_look_finds(held: dict[str, list[str]], said: set[str], gone: str) -> None:
    book = book_of(held)
    if gone in held:
        book.remove_account(identifiers.parse_account(gone))
    scopes = [parse_scope(text) for text in sorted(said)]
    expected = in_scope_slowly(book, scopes)
    assert orders_in(book, scopes).tolist() == expected
    closing = parse_kills(dict.fromkeys(said, kill("close")))
    assert orders_to_close(book, closing).tolist() == expected
    assert orders_to_close(book, parse_kills(dict.fromkeys(said, kill()))).tolist() == []
    assert closing.masters_to_close() == sorted(text[7:] for text in said if text.startswith("master:"))


def test_orders_that_wait_are_found_by_account_and_not_by_symbol() -> None:
    book = PlainBook(ValuationRules())
    fill_market(book, [EURUSD])
    waits = {"symbol": "EURUSD", "order_type": "BUY_LIMIT", "order_price": "1", "order_quantity": "1"}
    orders: list[dict[str, Any]] = [
        waits | {"order_status": "PENDING", "execution_status": "PENDING"},
        {"symbol": "{}"},
    ]
    row = fill_account(book, "live:1", CONFIG, orders)
    both = sorted(book.orders_of(row).values())
    assert orders_in(book, [Scope(ScopeKind.ACCOUNT, "live:1")]).tolist() == both
    assert orders_in(book, [Scope(ScopeKind.SYMBOL, "EURUSD")]).tolist() == []
    assert orders_without_symbol(book).tolist() == both  # whoever closes a symbol must ask for theirs
