"""How a follower wants to copy: every field of its configuration, what it says, and what cannot be read."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copyrisk.copying import AccountLimit, CopyDefaults, CopySettings, parse_settings
from copyrisk.fields import COPY_FIELDS
from copyrisk.sizing_terms import AboveMax, BelowMin, LeverageCorrection, Rounding, SizingMode
from copyrisk.terms import OrderType

DEFAULT = CopyDefaults()
NUMBERS = (
    *("multiplier", "max_lot_size", "fixed_lots", "target_leverage", "risk_pct", "lift_risk_limit", "max_daily_loss"),
    *("stop_copying_on_drawdown",),
)
WORDS: dict[str, tuple[str, ...]] = {
    "sizing_mode": tuple(SizingMode),
    "rounding": tuple(Rounding),
    "below_min": tuple(BelowMin),
    "above_max": tuple(AboveMax),
    "leverage_correction": tuple(LeverageCorrection),
    "sides_allowed": ("both", "buy", "sell"),
    "copy_sl_mode": ("none", "percentage", "amount"),
    "copy_tp_mode": ("none", "percentage", "amount"),
    "copy_status": ("active", "paused", "stopped"),
    "reverse": ("1", "true", "yes", "on", "0", "false", "no", "off"),
}
#: What other fields then need.
NEEDED = {
    "fixed_lots": ("fixed_lots", "0.5"),
    "fixed_leverage": ("target_leverage", "2"),
    "risk": ("risk_pct", "1"),
}


def parsed(default: CopyDefaults = DEFAULT, **said: str) -> CopySettings:
    return parse_settings([said.get(name) for name in COPY_FIELDS], default)


def test_without_any_field_the_brokers_settings_hold() -> None:
    assert parsed() == CopySettings()
    default = CopyDefaults(
        SizingMode.BALANCE, Rounding.NEAREST, BelowMin.LIFT, AboveMax.SKIP, 3.0, LeverageCorrection.CUT
    )
    own = parsed(default)
    assert (own.sizing_mode, own.rounding, own.below_min) == (SizingMode.BALANCE, Rounding.NEAREST, BelowMin.LIFT)
    assert (own.above_max, own.lift_risk_limit) == (AboveMax.SKIP, 3.0)
    assert own.leverage_correction is LeverageCorrection.CUT
    assert parsed(default, rounding="down", below_min="skip").rounding is Rounding.DOWN


@pytest.mark.parametrize(("name", "word"), [(name, word) for name, words in WORDS.items() for word in words])
def test_every_word_is_read_in_any_case_and_with_blanks_around_it(name: str, word: str) -> None:
    more = dict([NEEDED[word]]) if word in NEEDED else {}
    if word in ("percentage", "amount"):
        more = {f"{name.removeprefix('copy_').removesuffix('_mode')}_{word}": "10"}
    plain = parsed(**more, **{name: word})
    assert plain.refusal == (f"copying_{word}" if word in ("paused", "stopped") else "")
    for said in (f" {word.upper()} ", word.capitalize()):
        odd = parsed(**more, **{name: said})
        if name == "copy_status":  # it is compared with what stands there, as it stands there
            assert odd.refusal == plain.refusal
        else:
            assert odd == plain


def test_copy_status_is_kept_as_it_stands_for_it_is_compared_with_what_stands_there() -> None:
    assert parsed(copy_status=" Active ").copy_status == " Active "


@pytest.mark.parametrize("name", [*NUMBERS, *WORDS])
@pytest.mark.parametrize("odd", ["x", "nan", "1e5", "-1", "1,5", "0x1", "\u0661", "null", "1_000", "no!", "{}"])
def test_what_cannot_be_read_is_a_refusal_that_names_the_field(name: str, odd: str) -> None:
    own = parsed(**{name: odd})
    assert own == CopySettings(refusal=f"{name}_invalid", copy_status=odd if name == "copy_status" else "")


@pytest.mark.parametrize("name", [*NUMBERS, *WORDS, "symbols_allowed", "symbols_denied"])
def test_an_empty_field_is_an_absent_one(name: str) -> None:
    for said in ("", "  "):
        as_it_stands = said if name == "copy_status" else ""
        assert parsed(**{name: said}) == replace(parsed(), copy_status=as_it_stands)


@pytest.mark.parametrize("name", [name for name in NUMBERS if name != "multiplier"])
def test_nothing_is_no_limit(name: str) -> None:
    assert parsed(**{name: "0"}) == parsed(**{name: "0.00"}) == parsed()


def test_a_multiplier_of_nothing_makes_no_sense() -> None:
    assert parsed(multiplier="0").refusal == "multiplier_invalid"
    assert parsed(multiplier="2.5").multiplier == Decimal("2.5")


@pytest.mark.parametrize(("mode", "needed"), [(mode, name) for mode, (name, _) in NEEDED.items()])
def test_a_mode_needs_its_number(mode: str, needed: str) -> None:
    for said in ({}, {needed: ""}, {needed: "0"}):
        assert parsed(sizing_mode=mode, **said).refusal == f"{needed}_invalid"
    own = parsed(sizing_mode=mode, **{needed: "1.5"})
    assert (own.refusal, getattr(own, needed)) == ("", Decimal("1.5"))


@pytest.mark.parametrize(("kind", "name"), [("sl", "stop_loss"), ("tp", "take_profit")])
def test_limits_of_the_account_are_amounts_or_shares_of_the_investment(kind: str, name: str) -> None:
    for said in ({}, {f"{kind}_amount": "0"}, {f"{kind}_percentage": "5"}):
        assert parsed(**{f"copy_{kind}_mode": "amount"}, **said).refusal == f"{kind}_amount_invalid"
    assert parsed(**{f"copy_{kind}_mode": "percentage"}).refusal == f"{kind}_percentage_invalid"
    amount = getattr(parsed(**{f"copy_{kind}_mode": "amount", f"{kind}_amount": "250"}), name)
    share = getattr(parsed(**{f"copy_{kind}_mode": "percentage", f"{kind}_percentage": "12.5"}), name)
    assert (amount, share) == (AccountLimit(Decimal(250), False), AccountLimit(Decimal("12.5"), True))
    assert (amount.usd(None), amount.usd(Decimal(-5))) == (Decimal(250), Decimal(250))
    assert share.usd(Decimal(2_000)) == Decimal(250)
    assert share.usd(None) is share.usd(Decimal(0)) is share.usd(Decimal(-5)) is None
    # what is not asked for is not looked at
    assert parsed(**{f"copy_{kind}_mode": "none", f"{kind}_amount": "x"}) == parsed()


@pytest.mark.parametrize("name", ["status", "is_active"])
def test_who_is_not_active_does_not_copy(name: str) -> None:
    for said in ("1", "true", "active", "ACTIVE ", "True"):
        assert parsed(**{name: said}).refusal == ""
    for said in ("0", "false", "blocked", "", "2", "yes"):
        assert parsed(**{name: said}).refusal == "follower_inactive"


SIDES = [
    ("both", False, "BUY", ""),
    ("buy", False, "BUY", ""),
    ("buy", False, "SELL_STOP", "side_denied"),
    ("sell", False, "BUY_LIMIT", "side_denied"),
    ("sell", False, "SELL", ""),
    ("buy", True, "BUY", "side_denied"),  # the copy is a sell
    ("buy", True, "SELL_LIMIT", ""),
    ("sell", True, "BUY", ""),
    ("sell", True, "SELL", "side_denied"),
    ("both", True, "SELL", ""),
]


@pytest.mark.parametrize(("sides", "reverse", "order_type", "reason"), SIDES)
def test_sides_are_those_of_the_copy(sides: str, reverse: bool, order_type: str, reason: str) -> None:
    own = parsed(sides_allowed=sides, reverse="1" if reverse else "0")
    assert own.refuses("EURUSD", OrderType(order_type)) == reason


SYMBOLS = [
    ({}, ""),
    ({"symbols_allowed": "EURUSD"}, ""),
    ({"symbols_allowed": "GBPUSD,EURUSD , XAUUSD"}, ""),
    ({"symbols_allowed": "GBPUSD XAUUSD"}, "symbol_denied"),
    ({"symbols_denied": "GBPUSD"}, ""),
    ({"symbols_denied": "GBPUSD,EURUSD"}, "symbol_denied"),
    ({"symbols_allowed": "EURUSD", "symbols_denied": "EURUSD"}, "symbol_denied"),
]


@pytest.mark.parametrize(("said", "reason"), SYMBOLS)
def test_symbols_are_allowed_and_denied(said: dict[str, str], reason: str) -> None:
    assert parsed(**said).refuses("EURUSD", OrderType.BUY) == reason


@pytest.mark.parametrize("name", ["symbols_allowed", "symbols_denied"])
@pytest.mark.parametrize("odd", ["eurusd", '["EURUSD"]', "EURUSD;GBPUSD", "EUR/USD", ",", "*", "EURUSD.c"])
def test_what_is_no_symbol_is_never_guessed_at(name: str, odd: str) -> None:
    """A follower who denied `eurusd`, or a list as JSON, meant something; that nothing is denied is not it."""
    assert parsed(**{name: odd}).refuses("EURUSD", OrderType.BUY) == f"{name}_invalid"


def test_so_many_symbols_are_no_list() -> None:
    assert parsed(symbols_denied=",".join(f"S{i}" for i in range(501))).refusal == "symbols_denied_invalid"


def test_the_first_reason_is_that_of_the_follower() -> None:
    own = parsed(copy_status="paused", symbols_denied="EURUSD")
    assert own.refuses("EURUSD", OrderType.BUY) == "copying_paused"


@given(st.fixed_dictionaries({}, optional={name: st.text(max_size=12) for name in COPY_FIELDS}))
def test_whatever_stands_there_is_read_or_refused(said: dict[str, str]) -> None:
    own = parsed(**said)
    named = own.refusal.removesuffix("_invalid")
    assert own.refusal in ("", "follower_inactive") or named in COPY_FIELDS
    other: Any = parsed(**{**said, named: ""}) if named in COPY_FIELDS else own
    assert isinstance(other, CopySettings)
