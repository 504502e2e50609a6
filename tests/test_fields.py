"""The grammar of numbers as a law, and every row code reached by what it stands for."""

import math
import re
import time
from enum import IntEnum
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from copyrisk import fields, layout
from copyrisk._core import OrderEffect, RowCode
from copyrisk.errors import reason_name
from copyrisk.risk import calc_status
from copyrisk.terms import ExecutionStatus, OrderStatus, OrderType
from tests import decoders
from tests.books import NOW_MS, read, value_one

ERROR = Exception("WRONGTYPE Operation against a key holding the wrong kind of value")
MEGABYTE = "9" * 1_000_000

plain_decimals = st.from_regex(r"-?[0-9]{1,20}(\.[0-9]{1,20})?", fullmatch=True)


@st.composite
def nearly_decimals(draw: st.DrawFn) -> str:
    """A plain decimal with one character too many, somewhere."""
    text = draw(plain_decimals)
    place = draw(st.integers(0, len(text)))
    return text[:place] + draw(st.sampled_from("+-._,eEx \n\0٣")) + text[place:]


texts = st.one_of(
    plain_decimals,
    nearly_decimals(),
    st.text(alphabet="0123456789.-+eE_nai \n٣", max_size=40),
    st.floats().map(repr),
    st.text(max_size=5),
)


def number_of(text: bytes | None) -> float:
    """A field's value as the daemon reads it."""
    return float(read(fields.QUOTE_COLUMNS, fields.Names(), [[text, None, None]])["bid"][0])


@given(texts)
def test_a_number_is_a_plain_decimal_and_nothing_else_is(text: str) -> None:
    plain = re.fullmatch("-?[0-9]{1,18}([.][0-9]{1,18})?", text) is not None
    found = number_of(text.encode())
    assert math.isnan(found) != plain
    if plain:
        assert found == float(text)


CONFIG = {"wallet_balance": "100", "leverage": "30", "group": "Standard"}
ORDER = {
    "symbol": "EURUSD",
    "order_type": "BUY",
    "order_status": "OPEN",
    "execution_status": "EXECUTED",
    "order_price": "1.1",
    "order_quantity": "0.5",
}
QUOTE = {"bid": "1.1", "ask": "1.2", "ts": "1"}
TERMS = {"contract_size": "100000", "profit": "USD", "type": "4", "crypto_margin_factor": "2"}

NAMES = fields.Names()


def account_of(answer: Any) -> decoders.AccountRow:
    row = fields.judge_accounts(read(fields.ACCOUNT_COLUMNS, NAMES, [answer]), NAMES)[0]
    levels = [
        None if math.isnan(row[name]) else float(row[name]) for name in ("warning_level_pct", "critical_level_pct")
    ]
    group = NAMES.text(int(row["group"]))
    values = (
        int(row["code"]),
        float(row["balance"]),
        float(row["leverage"]),
        group,
        *levels,
        bool(row["levels_valid"]),
    )
    return decoders.AccountRow(*values)


def order_of(answer: Any) -> decoders.OrderRow:
    row = fields.judge_orders(read(fields.ORDER_COLUMNS, NAMES, [answer]), NAMES)[0]
    symbol = NAMES.text(int(row["symbol"])) if row["symbol"] >= 0 else ""
    numbers = (float(row["price"]), float(row["lots"]), float(row["fees_usd"]))
    return decoders.OrderRow(int(row["code"]), int(row["effect"]), symbol, bool(row["is_buy"]), *numbers)


def quote_of(answer: Any) -> decoders.QuoteRow:
    row = fields.judge_quotes_read(read(fields.QUOTE_COLUMNS, NAMES, [answer]))[0]
    return decoders.QuoteRow(int(row["code"]), float(row["bid"]), float(row["ask"]), int(row["ts_ms"]))


def instrument_of(answer: Any) -> decoders.InstrumentRow:
    row = fields.judge_instruments(read(fields.INSTRUMENT_COLUMNS, NAMES, [answer]), NAMES)[0]
    currency = NAMES.text(int(row["profit_currency"])) if row["profit_currency"] >= 0 else ""
    numbers = (int(row["type"]), float(row["crypto_margin_factor"]))
    return decoders.InstrumentRow(int(row["code"]), float(row["contract_size"]), currency, *numbers)


#: Each kind of hash -> how it is read, its slow twin, its fields, and a sound one.
KINDS: dict[str, tuple[Any, Any, Any, dict[str, str]]] = {
    "account": (account_of, decoders.decode_account, fields.ACCOUNT_COLUMNS.fields, CONFIG),
    "order": (order_of, decoders.decode_order, fields.ORDER_COLUMNS.fields, ORDER),
    "quote": (quote_of, decoders.decode_quote, fields.QUOTE_COLUMNS.fields, QUOTE),
    "instrument": (instrument_of, decoders.decode_instrument, fields.INSTRUMENT_COLUMNS.fields, TERMS),
}


def plainly(row: Any) -> str:
    """Codes as numbers, and as text: NaN is equal to NaN there."""
    return repr(tuple(int(value) if isinstance(value, IntEnum) else value for value in row))


def likely(name: str) -> st.SearchStrategy[bytes | None]:
    """Values of a field, good and bad, with the edges of its grammar among them."""
    words = {"order_type": OrderType, "order_status": OrderStatus, "execution_status": ExecutionStatus}
    good = list(words.get(name, ["1", "4", "USD", "USDT", "EURUSD", "VIP 1", "0", "-1", "1.50", "2.25"]))
    return st.one_of(st.none(), st.sampled_from(good).map(str.encode), texts.map(str.encode), st.binary(max_size=70))


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_what_is_read_is_what_the_slow_twin_reads(kind: str, data: st.DataObject) -> None:
    read_fast, read_slowly, names, sound = KINDS[kind]
    changes = data.draw(st.dictionaries(st.sampled_from(names), st.none(), max_size=4))
    values = [likely(name) if name in changes else st.just(sound.get(name, None)) for name in names]
    drawn = [data.draw(value) for value in values]
    answer = [value.encode() if isinstance(value, str) else value for value in drawn]
    fast, slow = read_fast(answer), read_slowly(answer)
    if kind == "quote" and slow.code != RowCode.OK:
        assert fast.code == slow.code  # the numbers of a quote that cannot be read are not used
    else:
        assert plainly(fast) == plainly(slow)


@pytest.mark.parametrize("kind", KINDS)
def test_a_megabyte_in_any_field_is_refused_at_once(kind: str) -> None:
    decode, _, names, sound = KINDS[kind]
    assert decode(sound).code == RowCode.OK
    for name in names:
        started = time.perf_counter()
        row = decode({**sound, name: MEGABYTE})
        assert time.perf_counter() - started < 1.0
        # A threshold that cannot be read gives way to the default, and says so.
        assert row.code != RowCode.OK or not row.levels_valid


def without(sound: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in sound.items() if name not in names}


#: Each code that a decoder gives -> which decoder, and what it reads.
DECODED: dict[RowCode, tuple[str, Any]] = {
    RowCode.ACCOUNT_MISSING: ("account", {}),
    RowCode.ACCOUNT_UNREADABLE: ("account", ERROR),
    RowCode.WALLET_BALANCE_INVALID: ("account", without(CONFIG, "wallet_balance")),
    RowCode.LEVERAGE_INVALID: ("account", {**CONFIG, "leverage": "-1"}),
    RowCode.GROUP_INVALID: ("account", {**CONFIG, "group": ""}),
    RowCode.ORDER_MISSING: ("order", {}),
    RowCode.ORDER_UNREADABLE: ("order", ERROR),
    RowCode.ORDER_STATUS_INVALID: ("order", without(ORDER, "order_status", "execution_status")),
    RowCode.ORDER_SYMBOL_INVALID: ("order", {**ORDER, "symbol": "EUR}USD"}),
    RowCode.ORDER_TYPE_INVALID: ("order", {**ORDER, "order_type": "buy"}),
    RowCode.ORDER_PRICE_INVALID: ("order", without(ORDER, "order_price")),
    RowCode.ORDER_QUANTITY_INVALID: ("order", {**ORDER, "order_quantity": "0.00"}),
    RowCode.ORDER_SWAP_INVALID: ("order", {**ORDER, "swap": ""}),
    RowCode.ORDER_COMMISSION_INVALID: ("order", {**ORDER, "commission": "1e1"}),
    RowCode.QUOTE_UNREADABLE: ("quote", {**QUOTE, "ts": "-1"}),
    RowCode.INSTRUMENT_MISSING: ("instrument", {}),
    RowCode.INSTRUMENT_UNREADABLE: ("instrument", ERROR),
    RowCode.CONTRACT_SIZE_INVALID: ("instrument", {**TERMS, "contract_size": "-1"}),
    RowCode.PROFIT_CURRENCY_INVALID: ("instrument", {**TERMS, "profit": "US"}),
    RowCode.INSTRUMENT_TYPE_INVALID: ("instrument", {**TERMS, "type": "0"}),
    RowCode.CRYPTO_MARGIN_FACTOR_INVALID: ("instrument", without(TERMS, "crypto_margin_factor")),
}


@pytest.mark.parametrize(("code", "case"), DECODED.items(), ids=lambda part: getattr(part, "name", None))
def test_decoders_give_their_codes(code: RowCode, case: tuple[str, Any]) -> None:
    decode, *_ = KINDS[case[0]]
    assert decode(case[1]).code == code


INSTRUMENT = {**TERMS, "symbol": "EURUSD", "bid": "1.1", "ask": "1.2"}

#: Each code that only a valuation gives -> what differs from a good instrument.
VALUED: dict[RowCode, dict[str, Any]] = {
    RowCode.OK: {},
    RowCode.QUOTE_MISSING: {"bid": None, "ask": None},
    RowCode.QUOTE_ONE_SIDED: {"ask": None},
    RowCode.QUOTE_NOT_POSITIVE: {"bid": "0"},
    RowCode.QUOTE_CROSSED: {"bid": "1.3"},
    RowCode.QUOTE_WITHOUT_TIME: {"ts": None},
    RowCode.QUOTE_STALE: {"ts": NOW_MS - 30_001},
    RowCode.QUOTE_FROM_FUTURE: {"ts": NOW_MS + 30_001},
    RowCode.CONVERSION_RATE_MISSING: {"profit": "NOK"},
    RowCode.FIGURES_OUT_OF_RANGE: {"contract_size": "9" * 18},
}


@pytest.mark.parametrize(("code", "changes"), VALUED.items(), ids=lambda part: getattr(part, "name", None))
def test_a_valuation_gives_its_codes(code: RowCode, changes: dict[str, Any]) -> None:
    assert value_one(CONFIG, [{**INSTRUMENT, **changes}], [ORDER])["code"] == code


#: Tested where they belong: a row nobody filled and an infinite number in an array (test_core_shapes), a closed market
#: and inconsistent figures
#: (test_risk), an order id and an index that only the store sees.
ELSEWHERE = {
    RowCode.UNKNOWN,
    RowCode.MARKET_CLOSED,
    RowCode.QUOTE_NOT_FINITE,
    RowCode.ORDER_ID_INVALID,
    RowCode.ORDERS_INDEX_UNREADABLE,
    RowCode.FIGURES_INCONSISTENT,
    RowCode.ACCOUNT_CHANGING,
}


def test_every_code_is_reached() -> None:
    assert set(RowCode) == {*DECODED, *VALUED, *ELSEWHERE}
    assert not {*DECODED} & {*VALUED} and not ({*DECODED} | {*VALUED}) & ELSEWHERE


@pytest.mark.parametrize(
    ("ts", "whole", "code"),
    [
        ("1700000000000", 1_700_000_000_000, RowCode.OK),
        ("1700000000000.75", 1_700_000_000_000, RowCode.OK),
        ("0", 0, RowCode.OK),
        (None, -1, RowCode.OK),
        ("9" * 16, -1, RowCode.QUOTE_UNREADABLE),
    ],
)
def test_the_time_of_a_quote_is_whole_milliseconds(ts: str | None, whole: int, code: RowCode) -> None:
    assert quote_of({**QUOTE, "ts": ts}) == (code, 1.1, 1.2, whole)


@given(st.floats(-1e12, 1e12), st.floats(-1e12, 1e12))
def test_written_figures_keep_their_order(one: float, two: float) -> None:
    low, high = sorted((one, two))
    assert float(fields.usd_text(low)) <= float(fields.usd_text(high))
    assert float(fields.exact_text(low)) <= float(fields.exact_text(high))
    assert np.sign(float(fields.usd_text(low))) in (0.0, np.sign(low))


@pytest.mark.parametrize("good", ["0", "-1", "1.5", "00.10", "999999999999999999.999999999999999999"])
def test_plain_decimals_are_read(good: str) -> None:
    assert number_of(good.encode()) == float(good)


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
    assert math.isnan(number_of(bad))


GOOD_CONFIG = {
    "wallet_balance": "100",
    "leverage": "30",
    "group": "VIP",
    "auto_cutoff_level": "60",
    "auto_liquidation_level": "20",
}
GOOD_ORDER = {
    "symbol": "EURUSD", "order_type": "BUY", "order_status": "OPEN", "execution_status": "EXECUTED",
    "order_price": "1.1", "order_quantity": "0.5", "swap": "-1", "commission": "2",
}  # fmt: skip
CRYPTO_TERMS = {"contract_size": "100000", "profit": "JPY", "type": "4", "crypto_margin_factor": "2"}


def account_row(**changes: Any) -> decoders.AccountRow:
    return account_of({**GOOD_CONFIG, **changes})


def order_row(**changes: Any) -> decoders.OrderRow:
    return order_of({**GOOD_ORDER, **changes})


def terms_row(**changes: Any) -> decoders.InstrumentRow:
    return instrument_of({**CRYPTO_TERMS, **changes})


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
    row = order_of({**GOOD_ORDER, "order_status": status, "execution_status": execution})
    assert row.effect == effect


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
    assert abs(number_of(fields.usd_text(value).encode()) - value) <= 0.005 + abs(value) * 1e-15
    assert number_of(fields.exact_text(value).encode()) == pytest.approx(value, rel=1e-14, abs=1e-14)


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
