"""Commands: each in each state has an outcome or its code, and local closes book in cents what exact fractions say."""

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copyrisk._core import RowCode
from copyrisk.errors import Refused, TryLater
from copyrisk.execution import decide, judge_margin
from copyrisk.orders import FINISHED, Event, State
from copyrisk.placing import ORDERS_LIMIT
from copyrisk.pricing import Commission
from copyrisk.records import Order, read_order
from copyrisk.situation import Nothing, Outcome
from copyrisk.terms import AccountType, Flow, OrderType, RateSide
from tests.order_twin import (
    ACCOUNT,
    PENDING_STATES,
    Position,
    carried_out,
    charge,
    command,
    commissions,
    conditions,
    foreign,
    half_up,
    market,
    order_in,
    prices,
    quote,
    situation,
    stored,
)


def result(kind: str, order: Order | None, of_situation: Mapping[str, Any] | None = None, **fields: str) -> str:
    """What comes of a command, in one word: the event, or the code."""
    try:
        outcome = decide(command(kind, **fields), situation(order, **(of_situation or {})))
    except Refused as refused:
        return refused.code
    return outcome.code if isinstance(outcome, Nothing) else outcome.event.value


# ---- every command in every state

LOCAL, PROVIDER = Flow.LOCAL, Flow.PROVIDER
GONE, BUSY, DONE = "trigger_gone", "order_busy", "order_finished"
STOP: dict[str, dict[str, str]] = {
    "trigger stop_loss": {"trigger": "stop_loss", "trigger_price": "1.05"},
    "trigger take_profit": {"trigger": "take_profit", "trigger_price": "1.15"},
    "trigger pending": {"trigger": "pending", "trigger_price": "1.08"},
    "trigger margin": {"trigger": "margin"},
    "stop_loss": {"stop_loss": "1.05"},
    "take_profit": {"take_profit": "1.15"},
}
COLUMNS = ("modify", "cancel", "close", "stop_loss", "take_profit", "trigger stop_loss", "trigger pending")
NOT_PENDING = ("order_not_pending", "order_not_pending")
#: By state: what comes of the commands of `COLUMNS`; of two words parted by `|` the second is with the provider.
TABLE: dict[State, tuple[str, ...]] = {
    State.OPENING: (*NOT_PENDING, BUSY, BUSY, BUSY, GONE, GONE),
    State.FILLING: (*NOT_PENDING, BUSY, "levels_set", "levels_set", BUSY, GONE),
    State.OPEN: (*NOT_PENDING, "closed|close_sent", "levels_set", "levels_set", "closed|close_sent", GONE),
    State.CLOSING: (*NOT_PENDING, "close_in_progress", BUSY, BUSY, GONE, GONE),
    State.PLACING: (BUSY, BUSY, "order_not_open", BUSY, BUSY, GONE, GONE),
    State.PENDING: (
        "modified|modify_sent",
        "cancelled|cancel_sent",
        "order_not_open",
        "levels_set",
        "levels_set",
        GONE,
        "triggered|cancel_sent",
    ),
    State.MODIFYING: (BUSY, BUSY, "order_not_open", BUSY, BUSY, GONE, GONE),
    State.CANCELLING: (BUSY, BUSY, "order_not_open", BUSY, BUSY, GONE, GONE),
    **dict.fromkeys(sorted(FINISHED), (DONE, DONE, DONE, DONE, DONE, GONE, GONE)),
}


@pytest.mark.parametrize("flow", [LOCAL, PROVIDER, None])
@pytest.mark.parametrize("state", TABLE)
def test_every_command_in_every_state(state: State, flow: Flow | None) -> None:
    """Whatever its account's setting says by now, an order goes the way it was opened; with no way of its own, that."""
    order = order_in(state, flow, stop_loss=Decimal("1.05"), take_profit=Decimal("1.15"))
    goes = flow or PROVIDER
    setting = {"sending_orders": "rock" if flow is PROVIDER else "barclays"}
    expected = [words.split("|")[-1 if goes is PROVIDER else 0] for words in TABLE[state]]
    found = [result(name.split()[0], order, setting, **STOP.get(name, {})) for name in COLUMNS]
    assert found == expected
    assert result("trigger", order, setting, **STOP["trigger take_profit"]) == expected[5]
    margin = result("trigger", order, setting, **STOP["trigger margin"])
    assert margin == ("cancel_sent" if state is State.PENDING and goes is PROVIDER else GONE)
    assert {result(kind, order, setting) for kind in ("open", "pending")} == {"order_exists"}


def test_every_command_without_an_order() -> None:
    for kind in ("modify", "cancel", "close", "stop_loss", "take_profit"):
        assert result(kind, None, {"market": None}) == "order_not_found"
    assert result("trigger", None, {"market": None}, **STOP["trigger stop_loss"]) == GONE


# ---- flow

FLOWS = [
    ("demo", ("local", "local", "local", "local")),
    ("live", ("local", "provider", "unsupported_flow", "unsupported_flow")),
    ("strategy_provider", ("local", "provider", "provider", "provider")),
    ("copy_follower", ("local", "provider", "provider", "provider")),
]
EVENTS = {"local": "closed", "provider": "close_sent"}


@pytest.mark.parametrize(("kind", "expected"), FLOWS)
def test_the_flow_is_decided_at_the_opening_and_kept(kind: str, expected: tuple[str, ...]) -> None:
    whose = ACCOUNT._replace(type=AccountType(kind))
    settings_ = (" Rock ", "BARCLAYS", None, "anything else")
    for setting, flow in zip(settings_, expected, strict=True):
        said = {"account": whose, "sending_orders": setting}
        for opening, events in (("open", ("opened", "open_sent")), ("pending", ("placed", "place_sent"))):
            wanted = dict(zip(("local", "provider"), events, strict=True)).get(flow, flow)
            assert result(opening, None, said) == wanted
        if flow == "unsupported_flow":
            continue
        order = order_in(State.OPEN, Flow(flow), account=whose)
        assert {result("close", order, {"sending_orders": now}) for now in settings_} == {EVENTS[flow]}


@pytest.mark.parametrize(("kind", "expected"), FLOWS)
def test_an_order_of_another_service_goes_the_way_of_its_account(kind: str, expected: tuple[str, ...]) -> None:
    whose = ACCOUNT._replace(type=AccountType(kind))
    order = read_order(whose, "O1", foreign(), None)
    for setting, flow in zip(("rock", "barclays", None, "else"), expected, strict=True):
        assert result("close", order, {"sending_orders": setting}) == EVENTS.get(flow, flow)


# ---- placing


@pytest.mark.parametrize(("side", "price"), [("BUY", "1.08456"), ("SELL", "1.08449")])
def test_a_local_order_opens_at_the_market_with_half_the_spread(side: str, price: str) -> None:
    terms = conditions(spread="2", pip="0.00001", commission=Commission(Decimal("3.5"), False, True, True))
    outcome = carried_out("open", None, market=market(terms=terms), order_type=side, order_quantity="0.29")
    order = outcome.order
    assert outcome.needs_margin and outcome.booking is None and not outcome.request
    assert (order.state, order.flow, order.price) == (State.OPEN, LOCAL, Decimal(price))
    assert (order.quantity, order.opened, order.asked) == (Decimal("0.29"),) * 3
    assert (order.commission_usd, order.contract_value) == (Decimal("1.02"), 29_000)  # 1.015, half up
    assert order.created_at == "2023-11-14T22:13:20.123Z"


@pytest.mark.parametrize("side", ["BUY", "SELL"])
def test_a_provider_order_is_asked_for_and_waits(side: str) -> None:
    outcome = carried_out("open", None, sending_orders="barclays", order_type=side, order_quantity="0.290")
    order, asked = outcome.order, outcome.request
    assert outcome.needs_margin and (order.state, order.flow, order.opened) == (State.OPENING, PROVIDER, 0)
    assert order.commission_usd == 0  # nothing is filled
    assert (asked["action"], asked["side"], asked["order_quantity"]) == ("open", side, "0.29")
    assert (asked["order_type"], asked["target"], "order_price" in asked) == ("MARKET", "", False)
    assert list(order.requests) == [asked["request_id"]]
    again = carried_out("open", None, sending_orders="barclays", order_type=side, order_quantity="0.290")
    assert again.request == asked


def test_margin_that_does_not_cover_a_new_order_refuses_it() -> None:
    outcome = carried_out("open", None).with_margin(Decimal("1084.55"))
    assert (outcome.order.whole_margin_usd, outcome.order.margin_usd) == (Decimal("1084.55"),) * 2
    assert judge_margin(outcome, is_covered=True) is outcome
    with pytest.raises(Refused) as refused:
        judge_margin(outcome, is_covered=False)
    assert refused.value.code == "insufficient_margin"
    queued = carried_out("open", None, sending_orders="barclays").with_margin(Decimal("1084.55")).order
    assert (queued.whole_margin_usd, queued.margin_usd, queued.reserved_usd) == (Decimal("1084.55"), 0, 0)


CLOSED_MARKET = market(code=RowCode.MARKET_CLOSED)
NO_TERMS = market(terms=Refused("the symbol's terms cannot be used", code="instrument_missing"))


@pytest.mark.parametrize(
    ("of_situation", "fields", "code"),
    [
        ({"is_active": False}, {}, "account_inactive"),
        ({"order_count": ORDERS_LIMIT}, {}, "too_many_orders"),
        ({"market": CLOSED_MARKET}, {}, "market_closed"),
        ({"market": market(code=RowCode.QUOTE_STALE)}, {}, "quote_stale"),
        ({"market": market(code=RowCode.QUOTE_CROSSED)}, {}, "quote_crossed"),
        ({"market": market(code=RowCode.UNKNOWN)}, {}, "unknown"),
        ({"market": NO_TERMS}, {}, "instrument_missing"),
        ({}, {"order_quantity": "0.001"}, "invalid_order_quantity"),
        ({}, {"order_quantity": "100.01"}, "invalid_order_quantity"),
        ({}, {"order_quantity": "0.015"}, "invalid_order_quantity"),
    ],
)
@pytest.mark.parametrize("kind", ["open", "pending"])
def test_what_no_order_is_placed_in(kind: str, of_situation: dict[str, Any], fields: dict[str, str], code: str) -> None:
    assert result(kind, None, of_situation, **fields) == code


@pytest.mark.parametrize("limit", [("0.01", True), ("100", True), ("0.29", True)])
def test_lots_at_the_limits_are_placed(limit: tuple[str, bool]) -> None:
    assert result("open", None, order_quantity=limit[0]) == "opened"


@pytest.mark.parametrize(
    ("side", "level", "price", "is_fine"),
    [
        ("BUY", "stop_loss", "1.08449", True),
        ("BUY", "stop_loss", "1.08450", False),  # the bid, at which it would be closed
        ("BUY", "stop_loss", "1.08451", False),
        ("BUY", "take_profit", "1.08451", True),
        ("BUY", "take_profit", "1.08450", False),
        ("SELL", "stop_loss", "1.08456", True),
        ("SELL", "stop_loss", "1.08455", False),
        ("SELL", "take_profit", "1.08454", True),
        ("SELL", "take_profit", "1.08455", False),
        ("SELL", "take_profit", "1.2", False),
    ],
)
def test_levels_that_would_fire_at_once_are_refused(side: str, level: str, price: str, is_fine: bool) -> None:
    assert result("open", None, order_type=side, **{level: price}) == ("opened" if is_fine else f"invalid_{level}")
    order = order_in(State.OPEN, order_type=OrderType(side))
    assert result(level, order, **{level: price}) == ("levels_set" if is_fine else f"invalid_{level}")


@pytest.mark.parametrize(
    ("kind", "price", "is_fine"),
    [
        ("BUY_LIMIT", "1.08454", True),
        ("BUY_LIMIT", "1.08455", False),
        ("BUY_STOP", "1.08456", True),
        ("BUY_STOP", "1.08455", False),
        ("SELL_LIMIT", "1.08451", True),
        ("SELL_LIMIT", "1.08450", False),
        ("SELL_STOP", "1.08449", True),
        ("SELL_STOP", "1.08450", False),
    ],
)
def test_a_pending_order_waits_for_a_price_that_is_not_there(kind: str, price: str, is_fine: bool) -> None:
    assert result("pending", None, order_type=kind, order_price=price) == (
        "placed" if is_fine else "invalid_order_price"
    )
    order = order_in(State.PENDING, order_type=OrderType(kind))
    assert result("modify", order, order_price=price) == ("modified" if is_fine else "invalid_order_price")


@pytest.mark.parametrize("kind", ["BUY_LIMIT", "SELL_LIMIT", "BUY_STOP", "SELL_STOP"])
def test_levels_of_a_pending_order_lie_around_its_price(kind: str) -> None:
    price = {"BUY_LIMIT": "1.08", "SELL_LIMIT": "1.09", "BUY_STOP": "1.09", "SELL_STOP": "1.08"}[kind]
    below, above = ("stop_loss", "take_profit") if kind.startswith("BUY") else ("take_profit", "stop_loss")
    for level, distance, is_fine in ((below, -1, True), (below, 1, False), (above, 1, True), (above, -1, False)):
        at = str(Decimal(price) + distance * Decimal("0.00001"))
        placed = result("pending", None, order_type=kind, order_price=price, **{level: at})
        assert placed == ("placed" if is_fine else f"invalid_{level}")
        assert result("pending", None, order_type=kind, order_price=price, **{level: price}) == f"invalid_{level}"


def test_no_order_opens_at_no_price() -> None:
    """A spread that is wider than the price: the order would make its whole account unknown."""
    wide = market("0.00002", "0.00003", terms=conditions(spread="400", pip="0.0000001"))
    for side, expected in (("BUY", "opened"), ("SELL", "spread_invalid")):
        assert result("open", None, {"market": wide}, order_type=side) == expected


def test_a_placed_order_is_asked_for_with_its_price() -> None:
    outcome = carried_out("pending", None, sending_orders="barclays", order_type="SELL_LIMIT", order_price="1.090")
    asked = outcome.request
    assert (asked["action"], asked["order_type"], asked["side"]) == ("place", "SELL_LIMIT", "SELL")
    assert (asked["order_price"], asked["order_quantity"]) == ("1.09", "1")
    for kind, fields, price in (("modify", {"order_price": "1.095"}, "1.095"), ("cancel", {}, None)):
        pending = replace(outcome.order, state=State.PENDING)
        further = carried_out(kind, pending, **fields).request
        assert (further["action"], further.get("order_price")) == (kind, price)
        assert further["target"] == asked["request_id"] != further["request_id"]
    assert carried_out("modify", pending, order_price="1.095").order.price == Decimal("1.09")  # not before it is done


# ---- pending orders that are watched here


def test_a_triggered_order_is_filled_at_the_market() -> None:
    terms = conditions(spread="2", pip="0.00001", commission=Commission(Decimal(7), False, True, False))
    order = order_in(State.PENDING, order_type=OrderType.SELL_STOP)
    outcome = carried_out("trigger", order, market=market("1.0799", "1.0801", terms=terms), **STOP["trigger pending"])
    filled = outcome.with_margin(Decimal(1079)).order
    assert (filled.state, filled.order_type, filled.price) == (State.OPEN, OrderType.SELL, Decimal("1.07989"))
    assert (filled.commission_usd, filled.opened, filled.margin_usd) == (7, 1, 1079)


def test_a_trigger_that_margin_does_not_cover_ends_the_order() -> None:
    order = order_in(State.PENDING)
    outcome = carried_out("trigger", order, **STOP["trigger pending"]).with_margin(Decimal(1080))
    refused = judge_margin(outcome, is_covered=False)
    assert isinstance(refused, Outcome)
    assert (refused.event, refused.order.state) == (Event.TRIGGER_REFUSED, State.REJECTED)
    assert (refused.order.reason, refused.order.opened, refused.booking) == ("insufficient_margin", 0, None)
    assert refused.before == order and refused.order.order_type is OrderType.BUY_LIMIT


def test_a_provider_order_is_taken_back_only_when_margin_does_not_cover_it() -> None:
    outcome = carried_out("trigger", order_in(State.PENDING, PROVIDER), **STOP["trigger margin"])
    covered = judge_margin(outcome.with_margin(Decimal(1080)), is_covered=True)
    assert isinstance(covered, Nothing) and covered.code == "margin_covered"
    taken_back = judge_margin(outcome, is_covered=False)
    assert isinstance(taken_back, Outcome) and taken_back.request["action"] == "cancel"


@pytest.mark.parametrize("trigger", ["pending", "stop_loss", "take_profit"])
def test_a_trigger_at_another_price_is_late(trigger: str) -> None:
    state = State.PENDING if trigger == "pending" else State.OPEN
    order = order_in(state, stop_loss=Decimal("1.05"), take_profit=Decimal("1.15"))
    assert result("trigger", order, trigger=trigger, trigger_price="1.0501") == GONE
    bare = replace(order, stop_loss=None, take_profit=None, price=Decimal("1.0801"))
    assert result("trigger", bare, trigger=trigger, trigger_price="1.05") == GONE


# ---- closing


@pytest.mark.parametrize("kind", ["stop_loss", "take_profit"])
def test_levels_are_set_and_cancelled(kind: str) -> None:
    order = order_in(State.OPEN)
    at = stored(carried_out(kind, order, **STOP[kind]).order)
    assert getattr(at, kind) == Decimal(STOP[kind][kind])
    assert stored(carried_out(kind, at).order) == order
    assert result(kind, at, {"market": CLOSED_MARKET}) == "levels_set"  # a level can always be taken away


@pytest.mark.parametrize(
    ("lots", "code"),
    [
        ("1", "closed"),
        ("1.00", "closed"),
        ("0.99", "closed_in_part"),
        ("0.01", "closed_in_part"),
        ("1.01", "invalid_order_quantity"),
        ("0.995", "invalid_order_quantity"),
        ("0.001", "invalid_order_quantity"),
    ],
)
def test_how_much_of_an_order_can_be_closed(lots: str, code: str) -> None:
    assert result("close", order_in(State.OPEN), order_quantity=lots) == code
    with_provider = result("close", order_in(State.OPEN, PROVIDER), order_quantity=lots)
    assert with_provider == (code if code.startswith("invalid") else "close_sent")


def test_an_order_of_odd_lots_can_be_closed_as_a_whole() -> None:
    """Its group's limits may have changed since."""
    odd = order_in(State.OPEN, quantity=Decimal("0.005"), opened=Decimal("0.005"))
    assert result("close", odd) == "closed"
    assert result("close", odd, order_quantity="0.005") == "closed"
    terms = conditions(smallest="0.1", step="0.1")
    assert result("close", order_in(State.OPEN), {"market": market(terms=terms)}, order_quantity="0.95") == (
        "invalid_order_quantity"
    )


def test_a_close_with_the_provider_needs_no_quote_of_ours() -> None:
    for of in (CLOSED_MARKET, NO_TERMS, market(code=RowCode.QUOTE_STALE)):
        assert result("close", order_in(State.OPEN, PROVIDER), {"market": of}) == "close_sent"
    assert result("close", order_in(State.OPEN), {"market": CLOSED_MARKET}) == "market_closed"
    asked = carried_out("close", order_in(State.OPEN, PROVIDER), order_quantity="0.4").request
    assert (asked["action"], asked["side"], asked["order_quantity"]) == ("close", "SELL", "0.4")
    assert asked["target"] == "r1"


def test_no_rate_no_booking() -> None:
    nowhere = replace(market(), profit_is_usd=False)
    with pytest.raises(TryLater) as later:
        decide(command("close"), situation(order_in(State.OPEN), market=nowhere))
    assert later.value.code == "conversion_rate_missing"
    assert result("close", order_in(State.OPEN), {"balance": None}) == "wallet_balance_invalid"
    assert result("close", order_in(State.OPEN, PROVIDER), {"balance": None}) == "close_sent"


def test_an_order_of_another_service_is_closed_for_what_it_says() -> None:
    hash_ = foreign(commission="7.00", swap="-1.25", margin="1080", order_quantity="0.50")
    outcome = carried_out("close", read_order(ACCOUNT, "O1", hash_, None))
    assert outcome.booking is not None
    assert outcome.booking.amount_usd == Decimal("216.75")  # 0.0045 x 50,000 - 7 - 1.25
    assert stored(outcome.order).net_profit_usd == Decimal("216.75")


RATES = st.sampled_from(["identity", "direct", "inverse"])


@settings(max_examples=150, deadline=None)
@given(st.data(), st.booleans(), prices, commissions, RATES, st.sampled_from(RateSide))
def test_closes_in_part_book_what_fractions_say(
    data: st.DataObject, is_buy: bool, opened_at: Decimal, terms: Commission, pair: str, side: RateSide
) -> None:
    """However an order is cut up: commission and swap are charged once, lots end at 0, and each booking is exact."""
    cuts = [*sorted(data.draw(st.sets(st.integers(1, 99), max_size=5))), 100]
    commission_usd, swap = (data.draw(st.decimals(low, 99, places=2)) for low in (0, -99))
    order = order_in(State.OPEN, order_type=OrderType.BUY if is_buy else OrderType.SELL, price=opened_at)
    order = replace(order, commission_usd=commission_usd, swap_usd=swap)
    twin = Position(is_buy, Fraction(opened_at), Fraction(1), Fraction(100_000), terms)
    twin.commission, twin.swap = Fraction(commission_usd), Fraction(swap)
    before, booked = 0, []
    for cut in cuts:
        bid = data.draw(prices)
        conversion = quote(str(data.draw(prices)), "2.5")
        now = market(str(bid), str(bid + Decimal("0.00005")), terms=conditions(commission=terms), side=side)
        if pair != "identity":
            now = replace(now, profit_is_usd=False, **{pair: conversion})
        lots = Decimal(cut - before) / 100
        outcome = carried_out("close", order, market=now, order_quantity=str(lots))
        at = Fraction(bid) if is_buy else Fraction(bid) + Fraction(5, 100_000)
        gross = _usd(twin.gross(Fraction(lots), at), pair, side, conversion)
        value = -_usd(-Fraction(lots) * 100_000 * at, pair, side, conversion)
        twin.close(Fraction(lots), gross, charge(terms, Fraction(lots), value, is_entry=False))
        order, before = stored(outcome.order), cut
        assert outcome.booking is not None and outcome.booking.lots == lots
        booked.append(outcome.booking.amount_usd)
        assert order.state is (State.CLOSED if cut == 100 else State.OPEN)
    assert [Fraction(amount) for amount in booked] == twin.bookings
    assert order.net_profit_usd == sum(booked)
    assert Fraction(order.paid_commission_usd) == twin.charged and order.paid_swap_usd == swap
    assert (order.commission_usd, order.swap_usd, order.reserved_usd) == (0, 0, 0)
    assert twin.lots == 0 and order.contract_value == 100_000


def _usd(amount: Fraction, pair: str, side: RateSide, of: Any) -> Fraction:
    """The contract: direct pair multiplied, inverse divided; the worse side of `side` gives less, or takes more."""
    if pair == "identity":
        return amount
    bid, ask = Fraction(of.bid), Fraction(of.ask)
    usable = {RateSide.ASK: [ask], RateSide.MID: [(bid + ask) / 2], RateSide.SIDE: [bid, ask]}[side]
    return min(amount * rate if pair == "direct" else amount / rate for rate in usable)


def test_a_booking_is_rounded_half_up() -> None:
    order = order_in(State.OPEN, price=Decimal("1.0844999"), quantity=Decimal("0.5"), commission_usd=Decimal(1))
    found = carried_out("close", order).booking
    assert found is not None and Fraction(found.amount_usd) == half_up(Fraction(-995, 1000)) == Fraction(-1)


@pytest.mark.parametrize("state", PENDING_STATES)
def test_what_was_never_filled_books_nothing(state: State) -> None:
    for flow in (LOCAL, PROVIDER):
        try:
            outcome = decide(command("cancel"), situation(order_in(state, flow)))
        except Refused:
            continue
        assert isinstance(outcome, Outcome) and outcome.booking is None and outcome.order.net_profit_usd == 0
