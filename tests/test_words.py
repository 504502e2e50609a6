"""Keys, fields, flows, hours and prices: what crosses an edge, spelled out and pinned."""

import math
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from copyrisk import fields, keys, layout, select_flow
from copyrisk._core import OrderEffect, RowCode
from copyrisk.errors import InvalidId, UnsupportedFlow, reason_name
from copyrisk.hours import MarketHours, minute_of_week
from copyrisk.pricing import net_profit_usd
from copyrisk.risk import calc_status
from copyrisk.terms import ACCOUNT_TABLES, AccountType, Hedging
from tests.books import reply

# ---- keys

ACCOUNT = keys.account("copy_follower", "F-1_a")


def test_keys_are_those_of_the_contract() -> None:
    assert keys.config(ACCOUNT) == "user:{copy_follower:F-1_a}:config"
    assert keys.holding(ACCOUNT, "O9") == "user_holdings:{copy_follower:F-1_a}:O9"
    assert keys.orders_index(ACCOUNT) == "user_orders_index:{copy_follower:F-1_a}"
    assert keys.portfolio(ACCOUNT) == "user_portfolio:{copy_follower:F-1_a}"
    assert keys.symbol_holders("EURUSD", AccountType.LIVE) == "symbol_holders:EURUSD:live"
    assert keys.market("XAUUSD") == "market:XAUUSD"
    assert keys.group("Standard", "EURUSD") == "groups:{Standard}:EURUSD"
    assert keys.order_data("O9") == "order_data:O9"
    assert keys.order_triggers("O9") == "order_triggers:O9"
    assert keys.active_followers("M1") == "copy_master_followers:M1:active"
    assert keys.provider_of("F1") == "copy_follower_master:F1:provider_id"
    channels = (keys.MARKET_PRICE_UPDATES, keys.PORTFOLIO_UPDATES, keys.PORTFOLIO_FORCE_RECALC)
    assert channels == ("market_price_updates", "portfolio_updates", "portfolio_force_recalc")
    assert keys.TICK.startswith("copyrisk:")
    assert keys.STANDARD_GROUP == "Standard"


def test_account_types_and_tables_are_those_of_the_contract() -> None:
    assert {kind.value: table for kind, table in ACCOUNT_TABLES.items()} == {
        "live": "live_users",
        "demo": "demo_users",
        "strategy_provider": "strategy_provider_accounts",
        "copy_follower": "copy_follower_accounts",
    }


BAD_IDS = ["", "a b", "a{b", "a}b", "a\n", "\n", "a:b", "ä", "١", "a" * 65, "a\x00", "*", "../x"]


@pytest.mark.parametrize("bad", BAD_IDS)
def test_ids_outside_the_grammar_build_no_key(bad: str) -> None:
    for check in (keys.check_account_id, keys.check_order_id):
        with pytest.raises(InvalidId):
            check(bad)
    with pytest.raises(InvalidId):
        keys.account("live", bad)


@pytest.mark.parametrize("bad", ["", "eurusd", ".EUR", "EUR USD", "EUR{", "E" * 33, "EURUSD\n", "ÉUR"])
def test_symbols_outside_the_grammar_are_refused(bad: str) -> None:
    with pytest.raises(InvalidId):
        keys.check_symbol(bad)


@pytest.mark.parametrize("bad", ["", " VIP", "V}P", "-x", "V" * 33, "VIP\n"])
def test_groups_outside_the_grammar_are_refused(bad: str) -> None:
    with pytest.raises(InvalidId):
        keys.check_group(bad)


@pytest.mark.parametrize("bad", ["admin", "LIVE", "live ", "", "live\n"])
def test_other_account_types_are_refused_by_name(bad: str) -> None:
    with pytest.raises(InvalidId) as refusal:
        keys.account(bad, "1")
    assert refusal.value.code == "invalid_user_type"


def test_limits_of_the_grammar_are_inside_it() -> None:
    assert keys.check_account_id("a" * 64) and keys.check_symbol("A" + "#" * 31) and keys.check_group("A" * 32)


@given(st.sampled_from(AccountType), st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True))
def test_an_account_survives_its_keys(kind: AccountType, user_id: str) -> None:
    account = keys.account(kind.value, user_id)
    assert keys.account_of_key(keys.config(account).encode()) == account
    assert keys.account_of_key(keys.orders_index(account).encode()) == account
    assert keys.parse_account(str(account)) == account


@pytest.mark.parametrize(
    "key",
    [b"user:{live:1}:configs", b"user:{live:1}x}:config", b"user:live:1:config", b"user:{live}:config", b"\xff", b""],
)
def test_what_only_looks_like_an_account_key_is_refused(key: bytes) -> None:
    with pytest.raises(InvalidId):
        keys.account_of_key(key)


# ---- numbers and rows


@pytest.mark.parametrize("good", ["0", "-1", "1.5", "00.10", "999999999999999999.999999999999999999"])
def test_plain_decimals_are_read(good: str) -> None:
    assert fields.decimal_of(good.encode()) == float(good)


BAD_NUMBERS = [
    "",
    " 1",
    "1 ",
    "+1",
    ".5",
    "5.",
    "nan",
    "inf",
    "-inf",
    "1e5",
    "1_000",
    "1,5",
    "0x10",
    "1\n",
    "٣",
    "--1",
    "1" * 19,
]


@pytest.mark.parametrize("bad", [*(text.encode() for text in BAD_NUMBERS), b"\xff", b"1" * 1_000_000, None])
def test_anything_else_is_no_number(bad: bytes | None) -> None:
    assert math.isnan(fields.decimal_of(bad))


CONFIG = {
    "wallet_balance": "100",
    "leverage": "30",
    "group": "VIP",
    "auto_cutoff_level": "60",
    "auto_liquidation_level": "20",
}
ORDER = {
    "symbol": "EURUSD", "order_type": "BUY", "order_status": "OPEN", "execution_status": "EXECUTED",
    "order_price": "1.1", "order_quantity": "0.5", "swap": "-1", "commission": "2",
}  # fmt: skip
TERMS = {"contract_size": "100000", "profit": "JPY", "type": "4", "crypto_margin_factor": "2"}


def account_row(**changes: Any) -> fields.AccountRow:
    return fields.decode_account(reply(fields.ACCOUNT_FIELDS, {**CONFIG, **changes}))


def order_row(**changes: Any) -> fields.OrderRow:
    return fields.decode_order(reply(fields.ORDER_FIELDS, {**ORDER, **changes}))


def terms_row(**changes: Any) -> fields.InstrumentRow:
    return fields.decode_instrument(reply(fields.INSTRUMENT_FIELDS, {**TERMS, **changes}))


def test_good_rows_are_read() -> None:
    assert account_row() == (RowCode.OK, 100.0, 30.0, "VIP", 60.0, 20.0, True)
    assert order_row() == (RowCode.OK, OrderEffect.EXECUTED, "EURUSD", True, 1.1, 0.5, -3.0)
    assert terms_row() == (RowCode.OK, 100_000.0, "JPY", 4, 2.0)
    assert account_row(group=None).group == "Standard"
    assert order_row(swap=None, commission=None).fees_usd == 0.0
    assert terms_row(type="1", crypto_margin_factor=None).crypto_margin_factor == 1.0


def test_bad_rows_say_what_is_bad() -> None:
    assert account_row(wallet_balance=None).code == RowCode.WALLET_BALANCE_INVALID
    assert account_row(leverage="0").code == RowCode.LEVERAGE_INVALID
    assert account_row(group="a}b").code == RowCode.GROUP_INVALID
    assert order_row(order_status="X").code == RowCode.ORDER_STATUS_INVALID
    assert order_row(symbol="eur").code == RowCode.ORDER_SYMBOL_INVALID
    assert order_row(order_type=None).code == RowCode.ORDER_TYPE_INVALID
    assert order_row(order_price=None).code == RowCode.ORDER_PRICE_INVALID
    assert order_row(order_quantity="0").code == RowCode.ORDER_QUANTITY_INVALID
    assert order_row(swap="x").code == RowCode.ORDER_SWAP_INVALID
    assert order_row(commission="1e1").code == RowCode.ORDER_COMMISSION_INVALID
    assert terms_row(contract_size="0").code == RowCode.CONTRACT_SIZE_INVALID
    assert terms_row(profit="jpy").code == RowCode.PROFIT_CURRENCY_INVALID
    assert terms_row(type="5").code == RowCode.INSTRUMENT_TYPE_INVALID
    assert terms_row(crypto_margin_factor=None).code == RowCode.CRYPTO_MARGIN_FACTOR_INVALID


def test_hashes_that_are_not_there_or_not_hashes_say_so() -> None:
    decoders: list[tuple[Any, Any, RowCode, RowCode]] = [
        (fields.decode_account, fields.ACCOUNT_FIELDS, RowCode.ACCOUNT_MISSING, RowCode.ACCOUNT_UNREADABLE),
        (fields.decode_order, fields.ORDER_FIELDS, RowCode.ORDER_MISSING, RowCode.ORDER_UNREADABLE),
        (fields.decode_instrument, fields.INSTRUMENT_FIELDS, RowCode.INSTRUMENT_MISSING, RowCode.INSTRUMENT_UNREADABLE),
    ]
    for decode, names, missing, unreadable in decoders:
        assert decode([None] * len(names)).code == missing
        assert decode(Exception("WRONGTYPE")).code == unreadable
    assert fields.decode_quote(Exception("WRONGTYPE")).code == RowCode.QUOTE_UNREADABLE


@pytest.mark.parametrize(
    ("warning", "critical", "read", "valid"),
    [
        ("60", "20", (60.0, 20.0), True),
        (None, None, (None, None), True),
        ("x", "20", (None, 20.0), False),
        ("60", "-1", (60.0, None), False),
        ("20", "60", (20.0, 60.0), True),  # whether they are in order is for the book, which knows the defaults
    ],
)
def test_thresholds_that_make_no_sense_give_way_to_the_default(
    warning: Any, critical: Any, read: tuple[Any, Any], valid: bool
) -> None:
    row = account_row(auto_cutoff_level=warning, auto_liquidation_level=critical)
    assert (row.code, (row.warning_level_pct, row.critical_level_pct), row.levels_valid) == (RowCode.OK, read, valid)


@pytest.mark.parametrize(
    ("status", "execution", "effect"),
    [
        ("OPEN", "EXECUTED", OrderEffect.EXECUTED),
        ("MODIFY", "EXECUTED", OrderEffect.EXECUTED),
        ("OPEN", None, OrderEffect.EXECUTED),
        (None, "EXECUTED", OrderEffect.EXECUTED),
        ("OPEN", "QUEUED", OrderEffect.RESERVED),
        ("OPEN", "PENDING", OrderEffect.RESERVED),
        ("QUEUED", "QUEUED", OrderEffect.RESERVED),
        ("QUEUED", None, OrderEffect.RESERVED),
        ("PENDING", "PENDING", OrderEffect.IDLE),
        ("PENDING-QUEUED", None, OrderEffect.IDLE),
        ("PENDING-CANCEL", None, OrderEffect.IDLE),
        ("CLOSED", "CLOSED", OrderEffect.IDLE),
        ("CANCELLED", None, OrderEffect.IDLE),
        ("REJECTED", "REJECTED", OrderEffect.IDLE),
        ("SKIPPED", None, OrderEffect.IDLE),
        (None, "CLOSED", OrderEffect.IDLE),
        ("OPEN", "REJECTED", OrderEffect.EFFECT_UNKNOWN),
        ("OPEN", "CLOSED", OrderEffect.EFFECT_UNKNOWN),
        (None, None, OrderEffect.EFFECT_UNKNOWN),
        ("open", "EXECUTED", OrderEffect.EFFECT_UNKNOWN),
    ],
)
def test_what_an_order_does_to_its_account(status: str | None, execution: str | None, effect: OrderEffect) -> None:
    def encoded(text: str | None) -> bytes | None:
        return None if text is None else text.encode()

    assert fields.order_effect(encoded(status), encoded(execution)) == effect


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8957.2, "8957.2"),
        (500.0, "500.0"),
        (12.0817, "12.08"),
        (-0.001, "0.0"),
        (0.125, "0.12"),
        (1e12, "1000000000000.0"),
        (2.675, "2.67"),
    ],
)
def test_figures_are_written_with_two_decimals(value: float, text: str) -> None:
    assert fields.usd_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1 + 0.2, "0.3"),
        (1084.285548, "1084.285548"),
        (500.0, "500.0"),
        (0.0, "0.0"),
        (1e-7, "0.0000001"),
        (1e12, "1000000000000.0"),
    ],
)
def test_unrounded_figures_are_plain_decimals(value: float, text: str) -> None:
    assert fields.exact_text(value) == text


@given(st.floats(-1e13, 1e13))
def test_written_figures_obey_the_number_grammar(value: float) -> None:
    assert abs(fields.decimal_of(fields.usd_text(value).encode()) - value) <= 0.005 + abs(value) * 1e-15
    assert fields.decimal_of(fields.exact_text(value).encode()) == pytest.approx(value, rel=1e-14, abs=1e-14)


def test_every_code_has_a_word_and_a_status() -> None:
    assert {reason_name(code) for code in RowCode} == {code.name.lower() for code in RowCode}
    figure = np.zeros((), layout.FIGURES)

    def status(code: int) -> str:
        figure["code"] = code
        return calc_status(figure).value

    assert status(RowCode.UNKNOWN) == "error"
    assert status(RowCode.QUOTE_STALE) == status(RowCode.ORDER_MISSING) == "degraded"
    assert status(RowCode.LEVERAGE_INVALID) == status(RowCode.ACCOUNT_MISSING) == "error"
    assert status(RowCode.OK) == status(RowCode.MARKET_CLOSED) == "ok"


# ---- flow


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("demo", ("local", "local", "local", "local")),
        ("live", ("local", "provider", None, None)),
        ("strategy_provider", ("local", "provider", "provider", "provider")),
        ("copy_follower", ("local", "provider", "provider", "provider")),
    ],
)
def test_the_flow_table_of_the_contract(kind: str, expected: tuple[str | None, ...]) -> None:
    for setting, flow in zip((" Rock ", "BARCLAYS", None, "else"), expected, strict=True):
        if flow is None:
            with pytest.raises(UnsupportedFlow) as refusal:
                select_flow(kind, setting)
            assert refusal.value.code == "unsupported_flow"
        else:
            assert select_flow(kind, setting) == flow
    with pytest.raises(UnsupportedFlow):
        select_flow("admin", "rock")


# ---- hours


def at(text: str, zone: str = "America/New_York") -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1000)


@pytest.mark.parametrize(
    ("when", "is_open"),
    [
        ("2026-01-09T16:59:59", True),
        ("2026-01-09T17:00:00", False),
        ("2026-01-10T12:00:00", False),
        ("2026-01-11T16:59:59", False),
        ("2026-01-11T17:00:00", True),
        ("2026-01-14T03:00:00", True),
    ],
)
def test_the_week_of_new_york(when: str, is_open: bool) -> None:
    hours = MarketHours()
    assert [bool(flag) for flag in hours.open_by_type(at(when))] == [is_open] * 4 + [True]
    assert MarketHours(always_open=True).open_by_type(at(when)).all()


def test_the_week_follows_daylight_saving() -> None:
    def opening_hour(day: str) -> int:
        return next(hour for hour in range(24) if MarketHours().is_open(1, at(f"{day}T{hour:02d}:30:00", "UTC")))

    assert (opening_hour("2026-03-01"), opening_hour("2026-03-08")) == (22, 21)
    assert (opening_hour("2026-10-25"), opening_hour("2026-11-01")) == (21, 22)


def test_a_week_that_opens_and_closes_on_the_same_side_of_monday() -> None:
    hours = MarketHours(timezone="UTC", week_open="Mon 08:00", week_close="Fri 18:00")
    assert hours.is_open(1, int(datetime(2026, 1, 5, 8, tzinfo=UTC).timestamp() * 1000))
    assert not hours.is_open(1, int(datetime(2026, 1, 4, 23, tzinfo=UTC).timestamp() * 1000))


@pytest.mark.parametrize("bad", ["", "Sun", "Sun 5:00", "Sun 24:00", "Sun 10:60", "Sunday 10:00", "Sun 10.00"])
def test_times_of_the_week_are_checked(bad: str) -> None:
    with pytest.raises(ValueError, match="not a time"):
        minute_of_week(bad)


# ---- prices


@given(*[st.decimals(-(10**6), 10**6, places=4) for _ in range(4)])
def test_net_profit_is_rounded_half_up_once(profit: Decimal, entry: Decimal, exit_: Decimal, swap: Decimal) -> None:
    booked = net_profit_usd(profit_usd=profit, commission_entry=entry, commission_exit=exit_, swap=swap)
    exact = Fraction(profit) - Fraction(entry) - Fraction(exit_) + Fraction(swap)
    half_up = abs(exact) * 100 + Fraction(1, 2)
    assert abs(booked) == Decimal(half_up.numerator // half_up.denominator) / 100


@pytest.mark.parametrize("bad", ["most", "50%", -1, 101, float("nan"), True])
def test_hedging_rules_are_checked(bad: Any) -> None:
    with pytest.raises(ValueError, match="hedging must be"):
        Hedging.parse(bad)
