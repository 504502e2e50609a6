"""Calls that make no sense raise and name the array; nothing crashes, nothing outside is touched."""

from typing import Any

import numpy as np
import pytest

from copyrisk import (
    ConversionSide,
    LadderState,
    RowCode,
    ShapeError,
    fold_accounts,
    fold_all,
    judge_quotes,
    layout,
    price_legs,
    value_accounts,
)

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


def test_another_dtype_is_refused() -> None:
    wrong = np.zeros(2, [("bid", "f8"), ("ask", "f4")])
    with pytest.raises(ValueError, match="mismatch|Expected"):
        judge_quotes(wrong, 0, OPEN)


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
        rows(layout.LEG, legs), rows(layout.EXPOSURE, scratch),
    )  # fmt: skip


def two_orders() -> tuple[Any, Any]:
    accounts, orders = rows(layout.ACCOUNT, 1), rows(layout.ORDER, 2)
    accounts["capacity"] = 2
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
    accounts["capacity"] = 2
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
