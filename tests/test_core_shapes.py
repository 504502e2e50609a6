"""Calls that make no sense raise and name the array; nothing crashes, nothing outside is touched."""

from typing import Any

import numpy as np
import pytest

from copyrisk import (
    ConversionSide,
    LadderState,
    OrderEffect,
    RowCode,
    ShapeError,
    fold_accounts,
    fold_all,
    judge_quotes,
    layout,
    price_legs,
    value_accounts,
)
from copyrisk._core import moved_marks, value_rows
from copyrisk._lists import listed_orders, relink_orders

OPEN = np.ones(5, np.uint8)


def rows(dtype: np.dtype[np.void], count: int) -> Any:
    return np.zeros(count, dtype)


def test_nothing_is_a_book_too() -> None:
    judge_quotes(rows(layout.QUOTE, 0), 0, OPEN)
    price_legs(rows(layout.INSTRUMENT, 0), rows(layout.QUOTE, 0), ConversionSide.CONVERT_ASK, rows(layout.LEG_RATE, 0))
    legs = fold_all(rows(layout.ACCOUNT, 0), rows(layout.ORDER, 0), rows(layout.INSTRUMENT, 0))
    value_accounts(
        rows(layout.ACCOUNT, 0), legs, rows(layout.LEG_RATE, 0), rows(layout.INSTRUMENT, 0), rows(layout.FIGURES, 0)
    )


def test_a_zeroed_account_is_unknown() -> None:
    figures = rows(layout.FIGURES, 3)
    figures["state"] = LadderState.HEALTHY
    value_accounts(
        rows(layout.ACCOUNT, 3), rows(layout.LEG, 0), rows(layout.LEG_RATE, 0), rows(layout.INSTRUMENT, 0), figures
    )
    assert (figures["state"] == LadderState.STATE_UNKNOWN).all()
    assert (figures["code"] == RowCode.UNKNOWN).all()


@pytest.mark.parametrize("name", ["QUOTE", "INSTRUMENT", "ORDER", "LEG", "LEG_RATE", "ACCOUNT", "FIGURES", "EXPOSURE"])
def test_rows_have_no_hidden_padding(name: str) -> None:
    dtype = getattr(layout, name)
    assert dtype.itemsize == sum(dtype[field].itemsize for field in dtype.names)
    assert dtype.itemsize % 8 == 0
    assert all(offset % dtype[field].itemsize == 0 for field, (_, offset) in dtype.fields.items())


def valid_arguments(kernel: Any) -> dict[str, Any]:
    """Arguments that each kernel takes: one account without orders, one instrument, one quote."""
    quotes, instruments, rates = rows(layout.QUOTE, 1), rows(layout.INSTRUMENT, 1), rows(layout.LEG_RATE, 2)
    accounts, legs, orders = rows(layout.ACCOUNT, 1), rows(layout.LEG, 1), rows(layout.ORDER, 1)
    given: dict[Any, dict[str, Any]] = {
        judge_quotes: {"quotes": quotes, "now_ms": 0, "market_is_open": OPEN.copy()},
        price_legs: {"instruments": instruments, "quotes": quotes, "conversion_side": 0, "leg_rates": rates},
        fold_accounts: {
            "rows": np.zeros(1, np.int32),
            "accounts": accounts,
            "order_head": np.full(1, -1, np.int32),
            "orders": orders,
            "instruments": instruments,
            "legs": legs,
            "marks": np.zeros(1, np.uint64),
            "scratch": rows(layout.EXPOSURE, 1),
        },
        value_rows: {
            "rows": np.zeros(1, np.int32),
            "accounts": accounts,
            "legs": legs,
            "leg_rates": rates,
            "instruments": instruments,
            "figures": rows(layout.FIGURES, 1),
        },
        moved_marks: {
            "instruments": instruments,
            "leg_rates": rates,
            "rates_before": rates.copy(),
            "codes_before": np.zeros(1, np.uint8),
        },
        listed_orders: {
            "account_rows": np.zeros(1, np.int32),
            "orders": orders,
            "order_head": np.full(1, -1, np.int32),
        },
        relink_orders: {
            "account_rows": np.zeros(1, np.int32),
            "counts": np.ones(1, np.int32),
            "listed": np.zeros(1, np.int32),
            "orders": orders,
            "order_head": np.full(1, -1, np.int32),
            "is_listed": np.zeros(1, np.uint8),
        },
        value_accounts: {
            "accounts": accounts,
            "legs": legs,
            "leg_rates": rates,
            "instruments": instruments,
            "figures": rows(layout.FIGURES, 1),
        },
    }
    return given[kernel]


def other_kinds(array: Any) -> dict[str, Any]:
    """What an array must not be."""
    if array.dtype.names:
        names = array.dtype.names
        shuffled = np.dtype([(name, array.dtype[name]) for name in (*names[1:], names[0])])
        wrong = {"fields in another order": shuffled, "big-endian": array.dtype.newbyteorder(">"), "bytes": "V8"}
        wrong |= {"one field less": array.dtype[list(names[:-1])]}
        if len({array.dtype[name] for name in names}) == 1:
            del wrong["fields in another order"]  # all doubles: only their names tell them apart
    else:
        wrong = {"wider": f"{array.dtype.kind}8", "floating": "f8", "big-endian": array.dtype.newbyteorder(">")}
        wrong = {kind: dtype for kind, dtype in wrong.items() if np.dtype(dtype) != array.dtype}
    kinds: dict[str, Any] = {kind: np.zeros(len(array), dtype) for kind, dtype in wrong.items()}
    every_other = np.zeros(2 * len(array) + 2, array.dtype)[::2]
    return {
        **kinds,
        "two-dimensional": array[:, None],
        "not contiguous": every_other[: len(array) + 1],
        "a list": [1.0],
    }


KERNELS = (
    judge_quotes,
    price_legs,
    fold_accounts,
    value_accounts,
    value_rows,
    moved_marks,
    listed_orders,
    relink_orders,
)
ARRAYS = [
    (kernel, name)
    for kernel in KERNELS
    for name, given in valid_arguments(kernel).items()
    if not isinstance(given, int)
]


@pytest.mark.parametrize(("kernel", "name"), ARRAYS, ids=lambda part: getattr(part, "__name__", part))
def test_arrays_of_another_kind_are_refused(kernel: Any, name: str) -> None:
    arguments = valid_arguments(kernel)
    kernel(**arguments)
    for kind, wrong in other_kinds(arguments[name]).items():
        if not refuses(kernel, {**arguments, name: wrong}):
            pytest.fail(f"{name} was taken although it is {kind}")


def refuses(kernel: Any, arguments: dict[str, Any]) -> bool:
    try:
        kernel(**arguments)
    except (ValueError, TypeError):
        return True
    return False


WRITTEN = {judge_quotes: "quotes", price_legs: "leg_rates", fold_accounts: "legs", value_accounts: "figures"}
WRITTEN |= {value_rows: "figures", relink_orders: "orders"}


@pytest.mark.parametrize(("kernel", "name"), WRITTEN.items(), ids=lambda part: getattr(part, "__name__", part))
def test_an_array_to_write_to_must_be_writable(kernel: Any, name: str) -> None:
    arguments = valid_arguments(kernel)
    arguments[name].flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        kernel(**arguments)


@pytest.mark.parametrize(
    ("bid", "ask", "code"),
    [
        (np.inf, np.inf, RowCode.QUOTE_NOT_FINITE),
        (1.0, np.inf, RowCode.QUOTE_NOT_FINITE),
        (-np.inf, 1.0, RowCode.QUOTE_NOT_FINITE),
        (np.nan, np.nan, RowCode.QUOTE_MISSING),
        (np.nan, 1.0, RowCode.QUOTE_ONE_SIDED),
        (0.0, 1.0, RowCode.QUOTE_NOT_POSITIVE),
        (1.0, -1.0, RowCode.QUOTE_NOT_POSITIVE),
        (1.1, 1.0, RowCode.QUOTE_CROSSED),
        (5e-324, 1e308, RowCode.OK),
    ],
)
def test_numbers_that_make_no_quote(bid: float, ask: float, code: RowCode) -> None:
    quotes = rows(layout.QUOTE, 2)
    quotes["bid"], quotes["ask"], quotes["read_code"], quotes["market"] = bid, ask, RowCode.OK, (1, 255)
    judge_quotes(quotes, 2**62, OPEN)
    assert (quotes["code"] == code).all()


def test_rows_that_nobody_filled_are_unknown() -> None:
    """Code 0 is never healthy, in whichever row it stands."""
    quotes, instruments, rates = rows(layout.QUOTE, 1), rows(layout.INSTRUMENT, 1), rows(layout.LEG_RATE, 2)
    judge_quotes(quotes, 0, OPEN)
    price_legs(instruments, quotes, ConversionSide.CONVERT_ASK, rates)
    assert quotes["code"] == instruments["code"] == RowCode.UNKNOWN
    assert all(np.isnan(rates[name]).all() for name in rates.dtype.names)


def test_lengths_that_do_not_fit_are_named() -> None:
    with pytest.raises(ShapeError, match="market_is_open"):
        judge_quotes(rows(layout.QUOTE, 1), 0, np.ones(4, np.uint8))
    with pytest.raises(ShapeError, match="leg_rates: expected 4"):
        price_legs(rows(layout.INSTRUMENT, 2), rows(layout.QUOTE, 1), 0, rows(layout.LEG_RATE, 3))
    with pytest.raises(ShapeError, match="figures: expected 2"):
        value_accounts(
            rows(layout.ACCOUNT, 2),
            rows(layout.LEG, 0),
            rows(layout.LEG_RATE, 0),
            rows(layout.INSTRUMENT, 0),
            rows(layout.FIGURES, 1),
        )
    with pytest.raises(ShapeError, match="leg_rates"):
        value_accounts(
            rows(layout.ACCOUNT, 1),
            rows(layout.LEG, 0),
            rows(layout.LEG_RATE, 1),
            rows(layout.INSTRUMENT, 1),
            rows(layout.FIGURES, 1),
        )


@pytest.mark.parametrize("field", ["quote", "direct", "inverse"])
def test_an_instrument_that_points_outside_is_refused(field: str) -> None:
    instruments = rows(layout.INSTRUMENT, 1)
    instruments[field] = 1
    with pytest.raises(ShapeError, match="instruments"):
        price_legs(instruments, rows(layout.QUOTE, 1), 0, rows(layout.LEG_RATE, 2))


@pytest.mark.parametrize(
    ("first", "n_executed", "n_legs"), [(-1, 0, 0), (0, 2, 2), (1, 1, 1), (0, 1, 0), (0, -1, 0), (2**31 - 1, 1, 1)]
)
def test_a_segment_outside_the_legs_is_refused(first: int, n_executed: int, n_legs: int) -> None:
    accounts = rows(layout.ACCOUNT, 300)
    accounts[200]["first"], accounts[200]["n_executed"], accounts[200]["n_legs"] = first, n_executed, n_legs
    with pytest.raises(ShapeError, match="row 200 "):
        value_accounts(
            accounts,
            rows(layout.LEG, 1),
            rows(layout.LEG_RATE, 2),
            rows(layout.INSTRUMENT, 1),
            rows(layout.FIGURES, 300),
        )


def fold(accounts: Any, orders: Any, head: Any, *, legs: int = 4, scratch: int = 4, which: Any = (0,)) -> None:
    fold_accounts(
        np.array(which, np.int32), accounts, np.array(head, np.int32), orders, rows(layout.INSTRUMENT, 1),
        rows(layout.LEG, legs), np.zeros(len(accounts), np.uint64), rows(layout.EXPOSURE, scratch),
    )  # fmt: skip


def two_orders() -> tuple[Any, Any]:
    accounts, orders = rows(layout.ACCOUNT, 1), rows(layout.ORDER, 2)
    accounts["capacity"], accounts["read_code"] = 2, RowCode.OK
    orders["next"] = (1, -1)
    orders["effect"], orders["code"], orders["lots"] = 2, 1, 1.0
    return accounts, orders


def test_lists_that_leave_their_array_or_never_end_are_refused() -> None:
    accounts, orders = two_orders()
    fold(accounts, orders, [0])
    orders["next"] = (1, 0)
    with pytest.raises(ShapeError, match="orders"):
        fold(accounts, orders, [0])
    orders["next"] = (7, -1)
    with pytest.raises(ShapeError, match="orders"):
        fold(accounts, orders, [0])
    with pytest.raises(ShapeError, match="rows"):
        fold(accounts, two_orders()[1], [0], which=(1,))
    with pytest.raises(ShapeError, match="order_head"):
        fold(accounts, two_orders()[1], [0, 0])


def test_room_that_is_too_small_is_refused_before_anything_is_written() -> None:
    accounts, orders = two_orders()
    accounts["capacity"] = 1
    before = accounts.copy()
    with pytest.raises(ShapeError, match="legs"):
        fold(accounts, orders, [0])
    accounts["capacity"], accounts["read_code"] = 2, RowCode.OK
    with pytest.raises(ShapeError, match="legs"):
        fold(accounts, orders, [0], legs=1)
    with pytest.raises(ShapeError, match="scratch"):
        fold(accounts, orders, [0], scratch=1)
    orders["instrument"] = 9
    with pytest.raises(ShapeError, match="orders"):
        fold(accounts, orders, [0])
    accounts["capacity"] = 1
    assert (accounts == before).all()


def test_read_only_inputs_are_taken() -> None:
    accounts = rows(layout.ACCOUNT, 1)
    accounts.flags.writeable = False
    value_accounts(
        accounts, rows(layout.LEG, 0), rows(layout.LEG_RATE, 0), rows(layout.INSTRUMENT, 0), rows(layout.FIGURES, 1)
    )


@pytest.mark.parametrize("account", [-1, 1, 2**31 - 1])
def test_orders_of_an_account_that_is_not_there_are_refused(account: int) -> None:
    orders = rows(layout.ORDER, 2)
    orders["account"] = (0, account)
    with pytest.raises(ShapeError, match="orders: .* row 1 "):
        fold_all(rows(layout.ACCOUNT, 1), orders, rows(layout.INSTRUMENT, 1))


@pytest.mark.parametrize(
    ("effect", "code", "fold_code"),
    [
        (OrderEffect.EXECUTED, RowCode.OK, RowCode.OK),
        (OrderEffect.IDLE, RowCode.OK, RowCode.OK),
        (OrderEffect.EXECUTED, RowCode.UNKNOWN, RowCode.UNKNOWN),
        (OrderEffect.IDLE, RowCode.ORDER_MISSING, RowCode.ORDER_MISSING),
        (OrderEffect.EFFECT_UNKNOWN, RowCode.OK, RowCode.ORDER_STATUS_INVALID),
        (9, RowCode.OK, RowCode.ORDER_STATUS_INVALID),
    ],
)
def test_an_order_that_is_not_judged_makes_its_account_unknown(effect: int, code: int, fold_code: RowCode) -> None:
    accounts, orders = two_orders()
    orders["effect"][1], orders["code"][1] = effect, code
    fold(accounts, orders, [0])
    assert accounts["fold_code"] == fold_code
    assert np.isnan(accounts["fees_usd"]) == (fold_code != RowCode.OK)
    assert accounts["culprit"] == (-1 if fold_code == RowCode.OK else 1)


@pytest.mark.parametrize(
    ("kernel", "name", "value"),
    [
        (value_rows, "rows", np.array([1], np.int32)),
        (value_rows, "rows", np.array([-1], np.int32)),
        (value_rows, "figures", rows(layout.FIGURES, 2)),
        (value_rows, "leg_rates", rows(layout.LEG_RATE, 1)),
        (fold_accounts, "marks", np.zeros(2, np.uint64)),
        (moved_marks, "leg_rates", rows(layout.LEG_RATE, 1)),
        (moved_marks, "rates_before", rows(layout.LEG_RATE, 1)),
        (listed_orders, "account_rows", np.array([1], np.int32)),
        (listed_orders, "account_rows", np.array([-1], np.int32)),
        (listed_orders, "order_head", np.array([1], np.int32)),
        (relink_orders, "account_rows", np.array([1], np.int32)),
        (relink_orders, "counts", np.array([2], np.int32)),
        (relink_orders, "counts", np.array([-1], np.int32)),
        (relink_orders, "listed", np.array([1], np.int32)),
        (relink_orders, "listed", np.array([-1], np.int32)),
        (relink_orders, "is_listed", np.zeros(2, np.uint8)),
        (relink_orders, "order_head", np.zeros(0, np.int32)),
    ],
)
def test_what_does_not_fit_is_refused(kernel: Any, name: str, value: Any) -> None:
    with pytest.raises(ShapeError):
        kernel(**{**valid_arguments(kernel), name: value})


def test_a_list_that_never_ends_is_refused() -> None:
    arguments = valid_arguments(listed_orders)
    arguments["orders"]["next"], arguments["order_head"][0] = 0, 0
    with pytest.raises(ShapeError):
        listed_orders(**arguments)


@pytest.mark.parametrize("side", [-1, 3])
def test_a_conversion_side_that_is_none_is_refused(side: int) -> None:
    with pytest.raises(ShapeError, match="conversion_side"):
        price_legs(rows(layout.INSTRUMENT, 1), rows(layout.QUOTE, 1), side, rows(layout.LEG_RATE, 2))


def test_an_account_that_nobody_read_is_unknown_even_with_a_balance() -> None:
    accounts, orders = rows(layout.ACCOUNT, 1), rows(layout.ORDER, 0)
    accounts["balance"], accounts["leverage"] = 1000.0, 100.0
    figures = rows(layout.FIGURES, 1)
    legs = fold_all(accounts, orders, rows(layout.INSTRUMENT, 0))
    value_accounts(accounts, legs, rows(layout.LEG_RATE, 0), rows(layout.INSTRUMENT, 0), figures)
    assert (figures[0]["state"], figures[0]["code"]) == (LadderState.STATE_UNKNOWN, RowCode.UNKNOWN)
