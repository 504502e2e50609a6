"""Sizing the copies of 200,000 followers: the plain ratio, and a user's policy."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.measure import Figure, load, seconds
from benchmarks.twins import WrongResult
from copyrisk.policies import compile_policy
from copyrisk.sizing import POLICY_IN, SizeCode, size_lots

FOLLOWERS, ROUNDS = 200_000, 200
_TARGET_NS = 4.0
_LOTS, _MASTER_EQUITY = 1.37, 25_000.0
_MIN_STEPS = 1
_Floats = npt.NDArray[np.float64]
_Sizes = tuple[_Floats, npt.NDArray[np.uint8]]


def figures(followers: int = FOLLOWERS, rounds: int = ROUNDS) -> Iterator[Figure]:
    """Measure everything, each after its results were held against integers."""
    random = np.random.default_rng(5)
    equity, masters_equity = (np.round(random.lognormal(mean, 1.0, followers), 2) for mean in (8.5, 9.5))
    lots = random.integers(1, 2_000, followers) / 100
    multiplier, max_lot = random.integers(10, 300, followers) / 100, random.integers(1, 5_000, followers) / 100
    plain = {
        "size_lots_ns_per_follower": (_LOTS, _MASTER_EQUITY, equity),
        "size_lots_ratio_one_ns": (lots, masters_equity, masters_equity),
        "size_lots_all_differ_ns": (lots, masters_equity, equity),
    }
    for name, given in plain.items():
        yield _figure(name, _checked(*given), rounds, followers, target=_TARGET_NS)
    own = _checked(lots, masters_equity, equity, multiplier=multiplier, max_lot=max_lot)
    yield _figure("size_lots_own_limits_ns", own, rounds, followers)
    yield _figure("sizing_policy_ns_per_follower", _policy(equity), rounds, followers)


def _figure(name: str, run: Callable[[], Any], rounds: int, followers: int, target: float | None = None) -> Figure:
    times = [seconds(run) for _ in range(rounds)]
    value = round(float(np.median(times)) / followers * 1e9, 3)
    return Figure(name, value, "ns", target=target, at_most=target is not None, load=load())


def _checked(*figures: Any, **terms: Any) -> Callable[[], _Sizes]:
    def run() -> _Sizes:
        return size_lots(*figures, **terms)

    lots, codes = run()
    expected, expected_codes = exact_sizes(*figures, **terms)
    if lots.tolist() != expected or codes.tolist() != expected_codes:
        raise WrongResult("lots are not what integers give")
    return run


def exact_sizes(
    lots: Any, master_equity: Any, follower_equity: Any, multiplier: Any = 1.0, max_lot: Any = 100.0
) -> tuple[list[float], list[int]]:
    """Lots and codes by Python's integers, for two-decimal numbers, steps of 0.01 and the default policies."""
    columns = np.broadcast_arrays(lots, master_equity, follower_equity, multiplier, max_lot)
    hundredths = zip(*(np.rint(column * 100).astype(np.int64).tolist() for column in columns), strict=True)
    sizes, codes = [], []
    for steps, master, follower, times, most in hundredths:
        size = steps * follower * times // (master * 100)
        codes.append(
            int(SizeCode.OK if _MIN_STEPS <= size <= most else SizeCode.CLIPPED if size else SizeCode.BELOW_MIN)
        )
        sizes.append(min(size, most) / 100)
    return sizes, codes


def _policy(equity: _Floats) -> Callable[[], _Floats]:
    inputs = np.ones(len(equity), POLICY_IN)
    inputs["follower_equity"], inputs["master_equity"] = equity, _MASTER_EQUITY
    policy = compile_policy(_by_leverage)
    expected = equity / _MASTER_EQUITY
    if not np.allclose(policy.raw_lots(inputs), expected, rtol=1e-12, atol=0.0):
        raise WrongResult("the policy gave other lots")
    return lambda: policy.raw_lots(inputs)


def _by_leverage(
    master_lots: float,
    master_equity: float,
    master_balance: float,
    master_free_margin: float,
    master_leverage: float,
    follower_equity: float,
    follower_balance: float,
    follower_free_margin: float,
    follower_leverage: float,
    multiplier: float,
    price: float,
    lot_value_usd: float,
) -> float:
    return master_lots * multiplier * follower_equity / master_equity * min(1.0, follower_leverage / master_leverage)
