"""The grammar of numbers as a law, and every row code reached by what it stands for."""

import math
import re
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from copyrisk import fields
from copyrisk._core import RowCode
from tests.books import NOW_MS, reply, value_one

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


@given(texts)
def test_a_number_is_a_plain_decimal_and_nothing_else_is(text: str) -> None:
    plain = re.fullmatch("-?[0-9]{1,18}([.][0-9]{1,18})?", text) is not None
    found = fields.decimal_of(text.encode())
    assert math.isnan(found) != plain
    if plain:
        assert found == float(text)


@given(st.binary(max_size=60))
def test_bytes_that_are_no_text_are_no_numbers_and_raise_nothing(raw: bytes) -> None:
    fields.decimal_of(raw)
    fields.decode_account([raw] * len(fields.ACCOUNT_FIELDS))
    fields.decode_order([raw] * len(fields.ORDER_FIELDS))
    fields.decode_quote([raw] * len(fields.QUOTE_FIELDS))
    fields.decode_instrument([raw] * len(fields.INSTRUMENT_FIELDS))
    fields.order_effect(raw, raw)


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

DECODERS: dict[str, tuple[Any, Any, dict[str, str]]] = {
    "account": (fields.decode_account, fields.ACCOUNT_FIELDS, CONFIG),
    "order": (fields.decode_order, fields.ORDER_FIELDS, ORDER),
    "quote": (fields.decode_quote, fields.QUOTE_FIELDS, QUOTE),
    "instrument": (fields.decode_instrument, fields.INSTRUMENT_FIELDS, TERMS),
}


@pytest.mark.parametrize("kind", DECODERS)
def test_a_megabyte_in_any_field_is_refused_at_once(kind: str) -> None:
    decode, names, sound = DECODERS[kind]
    assert decode(reply(names, sound)).code == RowCode.OK
    for name in names:
        started = time.perf_counter()
        row = decode(reply(names, {**sound, name: MEGABYTE}))
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
    decode, names, _ = DECODERS[case[0]]
    answer = case[1] if isinstance(case[1], Exception) else reply(names, case[1])
    assert decode(answer).code == code


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
#: (test_risk), an order id and an index that only the store sees.
ELSEWHERE = {
    RowCode.UNKNOWN,
    RowCode.MARKET_CLOSED,
    RowCode.QUOTE_NOT_FINITE,
    RowCode.ORDER_ID_INVALID,
    RowCode.ORDERS_INDEX_UNREADABLE,
}


def test_every_code_is_reached() -> None:
    assert set(RowCode) == {*DECODED, *VALUED, *ELSEWHERE}
    assert not {*DECODED} & {*VALUED} and not ({*DECODED} | {*VALUED}) & ELSEWHERE


@pytest.mark.parametrize(
    ("ts", "read"),
    [
        ("1700000000000", 1_700_000_000_000),
        ("1700000000000.75", 1_700_000_000_000),
        ("0", 0),
        (None, -1),
        ("9" * 16, -1),
    ],
)
def test_the_time_of_a_quote_is_whole_milliseconds(ts: str | None, read: int) -> None:
    assert fields.decode_quote(reply(fields.QUOTE_FIELDS, {**QUOTE, "ts": ts})) == (RowCode.OK, 1.1, 1.2, read)


@given(st.floats(-1e12, 1e12), st.floats(-1e12, 1e12))
def test_written_figures_keep_their_order(one: float, two: float) -> None:
    low, high = sorted((one, two))
    assert float(fields.usd_text(low)) <= float(fields.usd_text(high))
    assert float(fields.exact_text(low)) <= float(fields.exact_text(high))
    assert np.sign(float(fields.usd_text(low))) in (0.0, np.sign(low))
