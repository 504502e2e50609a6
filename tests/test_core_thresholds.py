"""A threshold belongs to the worse side, exactly, and what cannot be known reaches none."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copyrisk import layout
from copyrisk._core import LadderState, RowCode, value_accounts
from copyrisk.risk import Valuer
from tests.books import PlainBook, figures_of, fill_account, fill_market, rules_of


def state_at(equity: float, used: float, warning: float = 50.0, critical: float = 10.0) -> LadderState:
    """Rung of an account with this equity and margin and nothing else."""
    account, leg = np.zeros(1, layout.ACCOUNT), np.zeros(1, layout.LEG)
    rates, instrument, figures = (
        np.zeros(2, layout.LEG_RATE),
        np.zeros(1, layout.INSTRUMENT),
        np.zeros(1, layout.FIGURES),
    )
    account["balance"], account["leverage"], account["n_executed"], account["n_legs"] = equity, 1.0, 1, 1
    account["warning_level_pct"], account["critical_level_pct"] = warning, critical
    account["read_code"] = account["fold_code"] = instrument["code"] = RowCode.OK
    leg["margin_base"], rates["margin"], rates["gain"], rates["loss"] = used, 1.0, 1.0, 1.0
    value_accounts(account, leg, rates, instrument, figures)
    return LadderState(figures[0]["state"])


@pytest.mark.parametrize("used", [0.01, 3.0, 1084.55, 33_333.33, 7e9])
@pytest.mark.parametrize(
    ("level", "at", "above"),
    [(10, LadderState.CRITICAL, LadderState.WARNING), (50, LadderState.WARNING, LadderState.HEALTHY)],
)
def test_a_threshold_belongs_to_the_worse_side(used: float, level: int, at: LadderState, above: LadderState) -> None:
    """At it, an ulp or two around it (noise of sums), and below it: at; one part in 10^9 above it: above."""
    exact = used * level / 100
    for equity in (exact, np.nextafter(exact, np.inf), np.nextafter(exact, -np.inf), exact * (1 - 1e-9)):
        assert state_at(float(equity), used) == at
    assert state_at(exact * (1 + 1e-9), used) == above


@pytest.mark.parametrize("equity", [float("nan"), float("inf"), -float("inf"), 1e13, -1e13])
def test_figures_that_cannot_be_reach_no_threshold(equity: float) -> None:
    assert state_at(equity, 100.0) == LadderState.STATE_UNKNOWN
    assert state_at(100.0, abs(equity)) == LadderState.STATE_UNKNOWN


def test_a_threshold_that_is_not_a_number_is_never_reached() -> None:
    assert state_at(1.0, 100.0, critical=float("nan")) == LadderState.WARNING


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 10**6), st.integers(1, 500), st.sampled_from([10, 20, 33, 50]))
def test_thresholds_are_exact_to_the_cent(lots_cents: int, leverage: int, level: int) -> None:
    """At the threshold is beyond it; one cent of equity above is not."""
    # One unit a lot at price 1: margin = lots / leverage. Take a balance that makes the level exact.
    used = Fraction(lots_cents, 100) / leverage
    balance = used * level / 100
    cents = -(-balance * 100 // 1)
    above = Fraction(cents + 1, 100)
    instrument = {"symbol": "EURUSD", "bid": "1", "ask": "1", "contract_size": "1", "profit": "USD", "type": "1"}
    order = {"symbol": "EURUSD", "order_type": "BUY", "order_price": "1", "order_quantity": f"{lots_cents / 100:.2f}"}

    def state_of(equity: Fraction) -> int:
        book = PlainBook(rules_of({"warning_level_pct": float(level), "critical_level_pct": 0.0}))
        fill_market(book, [instrument])
        config = {"wallet_balance": f"{float(equity):.2f}", "leverage": str(leverage)}
        row = fill_account(book, "live:1", config, [order])
        return int(figures_of(Valuer(book))[row]["state"])

    assert state_of(above) == LadderState.HEALTHY
    if balance * 100 == cents:
        assert state_of(balance) == LadderState.WARNING
