"""Why a copy is what it is: what was known, decided and done about a master's order, out of its stored record.

Facts are what JSON holds, and what is not known is `None`; lines say the same for people. Sizes are computed again from
the stored rows: they must come to the same.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from copyrisk.decimals import decimal_text
from copyrisk.derived import copy_id
from copyrisk.errors import Refused, StoreError
from copyrisk.layout import Rows
from copyrisk.replication import COPIED, target_words
from copyrisk.sizing import RULES, UNKNOWN_AMOUNT, SizeCode, SizingMode, is_sized, size_reason, size_rows
from copyrisk.store.decisions import Decision
from copyrisk.store.followers import follower_of
from copyrisk.store.functions import text
from copyrisk.terms import Flow, OrderType

Facts = dict[str, Any]

_RULES = {rule.value: rule.name.lower() for rule in set(RULES.values())}
_TIMES = ("ordered_ms", "received_ms", "decided_ms")
_LAST_MS = 253_402_300_799_999  # of the year 9999
_SIZED_FIELDS = ("steps", "raw_steps", "carry_steps", "code")
_RATIO_DIGITS, _LOT_DECIMALS = 12, 10


@dataclass(frozen=True, slots=True)
class Explanation:
    """All there is to say.

    Attributes
    ----------
    order : dict
        Facts of the master's order.
    followers : list of dict
        Facts of those who were asked for.
    differs : dict of str to str
        By follower, what does not come to the same when it is sized again.
    """

    order: Facts
    followers: list[Facts] = field(default_factory=list)
    differs: Mapping[str, str] = field(default_factory=dict)


def explanation(
    decision: Decision, waiting: Mapping[str, Facts], places: Sequence[int], copies: Mapping[int, Facts]
) -> Explanation:
    """What a stored decision says.

    Parameters
    ----------
    waiting : mapping
        By copy, what is said of those that could not follow the order so far.
    places : sequence of int
        Of followers that are to be told of in full.
    copies : mapping
        By place, what became of their copies, as far as it is known.

    Raises
    ------
    StoreError
        `decision_unreadable`: it does not hold what a decision holds.
    """
    try:
        if decision.made is not None and len(decision.made) != len(decision.rows):
            raise ValueError(f"{len(decision.made)} results of {len(decision.rows)} followers")
        differs = differences(decision.rows)
        order = _order_facts(decision, waiting, differs)
        followers = [
            _follower_facts(decision, place, waiting, differs.get(place, "")) | copies.get(place, {})
            for place in places
        ]
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as fault:
        raise _unreadable(decision, fault) from None
    for one in followers:
        one["filled_ms"] = _filled_ms(one)
    names = decision.rows["follower"].tolist()
    return Explanation(order, followers, {text(names[place]): what for place, what in differs.items()})


def received_ms(decision: Decision) -> int:
    """When the master's event came into its stream; raises as `explanation`."""
    try:
        return _time_ms(decision.header["received_ms"])
    except (LookupError, ValueError) as fault:
        raise _unreadable(decision, fault) from None


def _unreadable(decision: Decision, fault: Exception) -> StoreError:
    return StoreError(f"the decision about {decision.order_id}: {str(fault)[:80]!a}", code="decision_unreadable")


def differences(rows: Rows) -> dict[int, str]:
    """What is not as it must be, by place: sizes that come to something else, reasons that do not go with them."""
    stored, again = rows["sized"], size_rows(np.ascontiguousarray(rows["sizing"]))
    was_sized = rows["sizing"]["mode"] > 0
    again[~was_sized] = 0  # against these something stood before anybody asked for a size
    found: dict[int, list[str]] = {}
    for name in _SIZED_FIELDS:
        same = (stored[name] == again[name]) | ((stored[name] != stored[name]) & (again[name] != again[name]))
        for place in np.flatnonzero(~same).tolist():
            found.setdefault(place, []).append(f"{name} {stored[name][place]}, not {again[name][place]}")
    reasons = rows["reason"].tolist()
    for place, code in enumerate(again["code"].tolist()):
        expected = "" if is_sized(code) else size_reason(code)
        is_right = bool(reasons[place]) if not was_sized[place] else is_sized(code) or text(reasons[place]) == expected
        if not is_right:
            said = text(reasons[place]) or "to be copied"
            found.setdefault(place, []).append(f"{said}, not {expected or 'without a size'}")
    return {place: "; ".join(what) for place, what in found.items()}


# ---- the master's order


def _order_facts(decision: Decision, waiting: Mapping[str, Facts], differs: Mapping[int, str]) -> Facts:
    header, made = decision.header, decision.made
    names = ("event", "master", "version", "symbol", "order_type", "order_price", "lots", "stop_loss", "take_profit")
    results = decision.rows["reason"] if made is None else made["result"]
    counted = Counter(text(result) for result in results.tolist())
    copied = counted.pop(COPIED.decode(), 0)
    to_be_made = counted.pop("", 0)
    target = None if decision.target is None else target_words(decision.target) | {"version": decision.target_version}
    return {
        "order_id": decision.order_id,
        **{name: header[name] for name in names},
        "times": {name: _time_ms(header[name]) for name in _TIMES} | _stored(decision),
        "master_figures": {**header["master_figures"]},
        "quote": {**header["quote"]},
        "is_made": made is not None,
        "followers": len(decision.rows),
        "copied": copied,
        "to_be_made": to_be_made,
        "lots_copied": _lots_copied(decision),
        "why_not": dict(counted.most_common()),
        "latency_ms": _latencies(decision),
        "target": target,
        "waiting": dict(waiting),
        "sized": int((decision.rows["sizing"]["mode"] > 0).sum()),
        "recomputed": "different" if differs else "the same",
    }


def _time_ms(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _LAST_MS:
        raise ValueError(f"no time: {str(value)[:40]}")
    return value


def _stored_us(decision: Decision) -> npt.NDArray[np.int64]:
    """Microseconds from the stream entry of those copies of which they are known."""
    if decision.made is None:
        return np.zeros(0, np.int64)
    is_known = (decision.made["result"] == COPIED) & (decision.made["stored_us"] >= 0)
    found: npt.NDArray[np.int64] = decision.made["stored_us"][is_known]
    return found


def _stored(decision: Decision) -> Facts:
    stored_us, received_ms = _stored_us(decision), int(decision.header["received_ms"])
    if not len(stored_us):
        return {"first_stored_ms": None, "last_stored_ms": None}
    first, last = (received_ms + int(us) / 1e3 for us in (stored_us.min(), stored_us.max()))
    return {"first_stored_ms": first, "last_stored_ms": last}


def _latencies(decision: Decision) -> Facts | None:
    stored_us = _stored_us(decision)
    if not len(stored_us):
        return None
    p50, p99 = np.percentile(stored_us, [50, 99], method="inverted_cdf").tolist()
    return {"p50": p50 / 1e3, "p99": p99 / 1e3, "max": int(stored_us.max()) / 1e3}


def _lots_copied(decision: Decision) -> str:
    results = decision.rows["reason"] if decision.made is None else decision.made["result"]
    steps = [_step(group) for group in decision.header["groups"]]
    chosen = decision.rows[results == (b"" if decision.made is None else COPIED)]
    total = Decimal(0)
    for group in np.unique(chosen["group"]).tolist():
        whole = int(chosen["sized"]["steps"][chosen["group"] == group].sum())
        total += whole * (steps[group] or Decimal("NaN"))
    return decimal_text(total) if total.is_finite() else "unknown"


# ---- one follower


def _follower_facts(decision: Decision, place: int, waiting: Mapping[str, Facts], differs: str) -> Facts:
    row, header = decision.rows[place], decision.header
    account = follower_of(row["follower"])
    own_id = "" if account is None else copy_id(decision.order_id, account)
    group = header["groups"][int(row["group"])] if row["group"] >= 0 else None
    settings = header["settings"][int(row["settings"])] if group is not None else None
    age_ms = int(row["equity_age_ms"])
    return {
        "follower": text(row["follower"]),
        "copy_id": own_id,
        "group": group,
        "settings": settings,
        "equity_age_ms": age_ms if age_ms >= 0 else None,
        "reason": text(row["reason"]),
        **_size_facts(row, settings, None if group is None else _step(group)),
        **_made_facts(decision, place),
        "waiting": waiting.get(own_id),
        "recomputed": differs or "the same",
    }


def _size_facts(row: Any, settings: Facts | None, step: Decimal | None) -> Facts:
    """What the size followed from; `None` where nobody was asked for one."""
    sizing, sized = row["sizing"], row["sized"]
    rule = _RULES.get(int(sizing["mode"]))
    if rule is None or settings is None:
        return {"sizing": None, "lots": None, "code": None}
    mode = settings["sizing_mode"]
    said = {
        "rule": rule,
        "figure": mode if mode in (SizingMode.BALANCE, SizingMode.FREE_MARGIN) else "equity",
        "follower_usd": _usd(int(sizing["follower_cents"])),
        "master_usd": _usd(int(sizing["master_cents"])),
        "multiplier": decimal_text(Decimal(int(sizing["multiplier_micro"])) / 1_000_000),
        "ratio": _ratio(sizing, rule),
        "raw_lots": _lots(float(sized["raw_steps"]), step),
        "remainder_before": _lots(float(sizing["carry_steps"]), step),
        "remainder_after": _lots(float(sized["carry_steps"]), step),
        "min_lots": _lots(int(sizing["min_steps"]), step),
        "max_lots": _lots(int(sizing["max_steps"]), step),
    }
    code = SizeCode(int(sized["code"])).name.lower()
    return {"sizing": said, "lots": _lots(int(sized["steps"]), step), "code": code}


def _ratio(sizing: Any, rule: str) -> str | None:
    """What the master's lots are multiplied with, to so many digits; `None` where they do not count."""
    follower, master, micro, top, bottom = (
        int(sizing[name]) for name in ("follower_cents", "master_cents", "multiplier_micro", "ratio_num", "ratio_den")
    )
    if rule not in ("ratio", "multiple") or min(micro, top, bottom) < 1:
        return None
    ratio = Fraction(micro, 1_000_000) * Fraction(top, bottom)
    if rule == "ratio":
        if min(follower, master) < 1:
            return None
        ratio *= Fraction(follower, master)
    digits = f"{Decimal(ratio.numerator) / Decimal(ratio.denominator):.{_RATIO_DIGITS}g}"
    return decimal_text(Decimal(digits))


def _made_facts(decision: Decision, place: int) -> Facts:
    if decision.made is None:
        reason = text(decision.rows["reason"][place])
        return {"result": reason or None, "version": None, "margin_usd": None, "stored_ms": None, "latency_ms": None}
    made, received_ms = decision.made[place], int(decision.header["received_ms"])
    is_copied, stored_us = made["result"] == COPIED, int(made["stored_us"])
    is_timed = is_copied and stored_us >= 0
    return {
        "result": text(made["result"]),
        "version": int(made["version"]) if is_copied and made["version"] else None,
        "margin_usd": _usd(int(made["margin_cents"])) if is_timed else None,
        "stored_ms": received_ms + stored_us / 1e3 if is_timed else None,
        "latency_ms": stored_us / 1e3 if is_timed else None,
    }


def _filled_ms(one: Facts) -> float | None:
    """When a copy was filled: what is opened here, at the market, is filled as it is stored."""
    known: float | None = one.get("filled_ms")
    now = one.get("copy") or {}
    is_filled_here = now.get("flow") == Flow.LOCAL and now.get("order_type") in (OrderType.BUY, OrderType.SELL)
    return one["stored_ms"] if known is None and is_filled_here else known


def place_of(decision: Decision, follower: str) -> int:
    """Where a follower stands in a decision.

    Raises
    ------
    Refused
        `follower_unknown`
    """
    places = np.flatnonzero(decision.rows["follower"] == follower.encode())
    if not len(places):
        raise Refused(f"{follower} did not copy the master of order {decision.order_id} then", code="follower_unknown")
    return int(places[0])


def _step(group: Mapping[str, Any]) -> Decimal | None:
    return Decimal(group["step"]) if "step" in group else None


def _lots(steps: float, step: Decimal | None) -> str | None:
    if step is None or not np.isfinite(steps):
        return None
    return decimal_text(round(Decimal(repr(steps)) * step, _LOT_DECIMALS))


def _usd(cents: int) -> str | None:
    return None if cents == UNKNOWN_AMOUNT else f"{Decimal(cents).scaleb(-2):.2f}"
