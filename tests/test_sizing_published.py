"""Lot sizes that brokers and platforms have published, each under the convention that its source names."""

from typing import Any

import numpy as np
import pytest

from copyrisk.sizing import SizeCode, loss_per_lot, size_lots

INF = float("inf")

#: id -> (arguments of `size_lots`, lots, codes); OK where no code is given.
RATIOS: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "S-01": ({"of": (4, 4000, 1000)}, 1, None),
    "S-03": ({"of": (1, 10_000, 5000)}, 0.5, None),
    "S-04": ({"of": (2.5, 2000, 5000)}, 6.25, None),
    "S-08": (
        {"of": ([0.83, 0.79, 0.85], 1000, 1000), "mode": "fixed_lots", "fixed_lots": [0.10, 1.50, 0.10]},
        [0.10, 1.50, 0.10],
        None,
    ),
    "S-09": ({"of": (1, 10_000, [1190, 11])}, [0.11, 0], [SizeCode.OK, SizeCode.BELOW_MIN]),
    "S-10": (
        {"of": (1, 10_000, [1190, 11]), "rounding": "nearest", "below_min": "lift"},
        [0.12, 0.01],
        [SizeCode.OK, SizeCode.LIFTED],
    ),
    "S-11": ({"of": (2, 8000, 2000), "mode": "balance"}, 0.5, None),
    "S-13": ({"of": (2, 8000, 2000), "mode": "balance", "multiplier": 2.5}, 1.25, None),
    "S-14": ({"of": (2.5, 2000, 5000), "multiplier": 0.5, "rounding": "nearest"}, 3.13, None),
    "S-16": ({"of": (0.01, 100, 190), "rounding": "nearest"}, 0.02, None),
    "S-17": (
        {"of": (0.5, 10_000, 1000), "mode": ["balance", "balance", "equity", "equity"], "multiplier": [1, 2, 1, 2]},
        [0.05, 0.10, 0.05, 0.10],
        None,
    ),
    "S-18": (
        {"of": (1, 500, 200), "leverage_correction": "full", "master_leverage": 200, "follower_leverage": 100},
        0.2,
        None,
    ),
    "S-19": (
        {"of": (1, 1000, [4, 5, 324, 325]), "rounding": "nearest"},
        [0, 0.01, 0.32, 0.33],
        [SizeCode.BELOW_MIN, *[SizeCode.OK] * 3],
    ),
    "S-20": ({"of": (1, 1000, [50_010, 50_000]), "max_lot": 50, "above_max": "skip"}, [0, 50], [SizeCode.ABOVE_MAX, 1]),
    # 40,000 EUR are 50,800 USD; half of it is for copying.
    "S-21": (
        {
            "of": (1, 15_000, 50_800),
            "mode": "balance",
            "multiplier": 0.5,
            "rounding": "ladder",
            "leverage_correction": "cut",
            "master_leverage": 100,
            "follower_leverage": 200,
        },
        1.6,
        None,
    ),
    # Of 100 lots the percentage is the lots.
    "S-23": (
        {"of": (100, 10_000, [25, 625, 2970, 12_960]), "rounding": "ladder", "max_lot": 1000},
        [1, 6, 25, 120],
        None,
    ),
    "S-24": ({"of": (1, 10_000, 2000), "mode": "balance", "multiplier": 1}, 0.2, None),
    "S-26": ({"of": (1, 2000, 1000), "mode": "balance", "multiplier": 1}, 0.5, None),
    "S-27": ({"of": (0.1, 10_000, 1000)}, 0.01, None),
    # Whether the margin suffices for the fewest lots is for the caller to know: it lifts only then.
    "S-29": (
        {"of": (10, 150_000, [300, 299, 149, 149]), "mode": "balance", "below_min": ["skip", "skip", "lift", "skip"]},
        [0.02, 0.01, 0.01, 0],
        [SizeCode.OK, SizeCode.OK, SizeCode.LIFTED, SizeCode.BELOW_MIN],
    ),
    "S-32": ({"of": (1, 1000, [700, 400]), "max_lot": 0.5}, [0.5, 0.4], [SizeCode.CLIPPED, SizeCode.OK]),
    "S-33": (
        {"of": (1, 1000, [5, 5, 20, 55_000, 45_000]), "max_lot": 50, "below_min": ["skip", *["lift"] * 4]},
        [0, 0.01, 0.02, 50, 45],
        [SizeCode.BELOW_MIN, SizeCode.LIFTED, SizeCode.OK, SizeCode.CLIPPED, SizeCode.OK],
    ),
    "S-34": (
        {"of": (1, 1000, 1000), "multiplier": 0.5, "strategy_max_lot": 0.1, "max_lot": 0.08},
        0.05,
        SizeCode.CLIPPED,
    ),
    "S-35": (
        {
            "of": (1, 10_000, [49, 50, 20, 19]),
            "rounding": ["nearest", "nearest", "down", "down"],
            "below_min": ["skip", "skip", "lift", "lift"],
            "lift_risk_limit": 5,
        },
        [0, 0.01, 0.01, 0],
        [SizeCode.BELOW_MIN, SizeCode.OK, SizeCode.LIFTED, SizeCode.LIFT_TOO_RISKY],
    ),
    "S-38": ({"of": (1, 1000, [10_000, 1000]), "multiplier": [1, 2]}, [10, 2], None),
    # Units of the venue; the master puts 1.5 % of what he has free into the order.
    "S-40": (
        {
            "of": (15, 1000, 123),
            "mode": "free_margin",
            "lot_step": 0.001,
            "min_lot": 10,
            "max_lot": INF,
            "below_min": ["skip", "lift"],
        },
        [0, 10],
        [SizeCode.BELOW_MIN, SizeCode.LIFTED],
    ),
}


@pytest.mark.parametrize("name", RATIOS)
def test_a_published_size_is_met(name: str) -> None:
    given, expected, codes = RATIOS[name]
    terms = {term: value for term, value in given.items() if term != "of"}
    lots, found = size_lots(*given["of"], **terms)
    assert lots.tolist() == expected
    assert np.array_equal(found, np.broadcast_to(SizeCode.OK if codes is None else codes, found.shape))


#: id -> equity, entry, stop, rate, batch, units, expected units; a lot is one unit here.
RISKS: dict[str, tuple[float, float, float, float, float, int, float]] = {
    "S-50": (1e6, 1.00100, 1.00000, 1.0, 1000, 1, 1_000_000),
    "S-51": (1e6, 1.00010, 1.00000, 1.0, 1000, 3, 3_333_000),
    "S-52": (1e6, 1.00087, 1.00000, 1.0, 25_000, 4, 275_000),
    "S-57 equity": (0.0, 1.001, 1.0, 1.0, 1000, 1, 0),
    "S-57 rate": (1e6, 1.001, 1.0, 0.0, 1000, 1, 0),
    "S-57 stop": (1e6, 1.001, 1.001, 1.0, 1000, 1, 0),
}


def by_risk(equity: float, entry: float, stop: float, rate: float, batch: float, units: int, **terms: Any) -> Any:
    loss = loss_per_lot(entry, stop, 1.0, rate)
    given = {"lot_step": batch, "min_lot": batch, "max_lot": 1e7, "units": units, "risk_pct": 0.1} | terms
    return size_lots(batch, 1.0, equity, mode="risk", loss_per_lot_usd=loss, **given)


@pytest.mark.parametrize("name", RISKS)
def test_a_published_size_by_risk_is_met(name: str) -> None:
    *given, expected = RISKS[name]
    lots, code = by_risk(*given)
    assert lots == expected
    refused = {"S-57 equity": SizeCode.FOLLOWER_EQUITY_NOT_POSITIVE}
    assert code == (SizeCode.OK if expected else refused.get(name, SizeCode.LOT_VALUE_INVALID))


def test_the_published_formula_with_commission_and_hard_limit() -> None:
    """(1,000 - 1,000 x 0.0002 x 2) / 0.001 = 999,600; at most 600,000, in 2 parts."""
    given = (1e6, 1.001, 1.0, 1.0, 100)
    assert by_risk(*given, 1, commission_rate=0.0002)[0] == 999_600
    assert [value.item() for value in by_risk(*given, 2, hard_limit_lots=600_000)] == [300_000, SizeCode.CLIPPED]


def test_every_row_of_the_list_is_here() -> None:
    listed = "01 03 04 08 09 10 11 13 14 16 17 18 19 20 21 23 24 26 27 29 32 33 34 35 38 40 50 51 52 57"
    assert {name[:4] for name in (*RATIOS, *RISKS)} == {f"S-{number}" for number in listed.split()}
