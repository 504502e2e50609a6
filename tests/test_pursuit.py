"""The next step of a copy towards what its master's order asks, by state, lots, levels and flow."""

import itertools
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from copyrisk._core import RowCode
from copyrisk.commands import Command, CommandType, Target
from copyrisk.conditions import Conditions, LotLimits
from copyrisk.errors import Refused, TryLater
from copyrisk.identifiers import Account
from copyrisk.orders import FINISHED, HOLDING_LOTS, Event, State
from copyrisk.pricing import Commission, Spread
from copyrisk.pursuit import follow_master, lots_of_share
from copyrisk.records import Order
from copyrisk.situation import Nothing, Outcome, Quote, Situation, SymbolMarket
from copyrisk.terms import AccountType, Flow, OrderType

FOLLOWER = Account(AccountType.FOLLOWER, "F")
NO_COMMISSION = Commission(Decimal(0), is_percent=False, on_entry=False, on_exit=False)
TERMS = Conditions(Decimal(100_000), 1, Spread(Decimal(0), Decimal(0)), NO_COMMISSION, LotLimits())
QUOTE = Quote(Decimal("1.0845"), Decimal("1.08455"), RowCode.OK)
OPEN = Order(
    account=FOLLOWER,
    id="copy-1",
    symbol="EURUSD",
    order_type=OrderType.BUY,
    state=State.OPEN,
    flow=Flow.LOCAL,
    price=Decimal("1.084"),
    quantity=Decimal(1),
    created_at="",
    asked=Decimal(1),
    opened=Decimal(1),
)
WAITING = (State.PLACING, State.PENDING, State.MODIFYING, State.CANCELLING)


def ask(target: Target | None) -> Command:
    return Command(
        id="",
        type=CommandType.FOLLOW,
        account=FOLLOWER,
        order_id="copy-1",
        key="",
        client_key="",
        body="",
        target=target,
    )


def situation(order: Order | None, quote: Quote = QUOTE, **more: Any) -> Situation:
    usual: dict[str, Any] = {"now_ms": 0, "balance": Decimal(1_000), "sending_orders": "rock", "is_active": True}
    market = SymbolMarket("EURUSD", quote, TERMS, True)
    return Situation(FOLLOWER, order=order, market=market, order_count=1, **{**usual, **more})


def in_state(state: State, **more: Any) -> Order:
    opened = Decimal(1) if state in HOLDING_LOTS else Decimal(0)
    order_type = OrderType.BUY_LIMIT if state in WAITING else OrderType.BUY
    return replace(OPEN, state=state, opened=opened, order_type=order_type, **more)


def follow(order: Order | None, target: Target, **more: Any) -> Outcome | Nothing:
    return follow_master(ask(target), situation(order, **more))


def all_steps(order: Order, target: Target) -> Order:
    """Steps until there is nothing to do; at most three."""
    for _ in range(4):
        step = follow(order, target)
        if isinstance(step, Nothing):
            return order
        order = step.order
        if order.state in FINISHED:
            return order
    raise AssertionError("there is no end")


# ---- what there is to do, by state


@pytest.mark.parametrize("state", sorted(FINISHED))
def test_a_copy_that_has_ended_stays_as_it_is(state: State) -> None:
    for target in (Target(Fraction(0)), Target(Fraction(1, 2)), Target(None, Decimal(1), Decimal(2), Decimal(1))):
        assert follow(in_state(state), target) == Nothing("copy_gone", "the copy is not there any more")
    assert isinstance(follow(None, Target(Fraction(0))), Nothing)


def test_without_a_target_nothing_is_followed() -> None:
    with pytest.raises(Refused):
        follow_master(ask(None), situation(OPEN))


ENDS = {
    State.OPEN: (Event.CLOSED, Event.CLOSE_SENT),
    State.PENDING: (Event.CANCELLED, Event.CANCEL_SENT),
}


@pytest.mark.parametrize("flow", list(Flow))
@pytest.mark.parametrize("state", [state for state in State if state not in (*FINISHED, State.NONE)])
def test_when_the_master_is_out_every_copy_goes_or_is_asked_again(state: State, flow: Flow) -> None:
    order = in_state(state, flow=flow)
    if state in ENDS:
        step = follow(order, Target(Fraction(0)))
        assert isinstance(step, Outcome) and step.event is ENDS[state][flow is Flow.PROVIDER]
        return
    with pytest.raises(TryLater) as waits:
        follow(order, Target(Fraction(0)))
    assert waits.value.code == "copy_busy"


LATER = (State.OPENING, State.FILLING, State.PLACING, State.PENDING, State.MODIFYING, State.CANCELLING)


@pytest.mark.parametrize("state", LATER)
def test_a_copy_that_is_not_filled_yet_is_asked_again_for_its_share(state: State) -> None:
    order = in_state(state)
    if state is State.FILLING:
        order = replace(order, quantity=Decimal("0.01"), opened=Decimal("0.01"))  # half of it rounds to all of it
    with pytest.raises(TryLater) as waits:
        follow(order, Target(Fraction(1, 2)))
    assert waits.value.code == "copy_busy"


@pytest.mark.parametrize("state", [state for state in State if state not in (*FINISHED, State.NONE)])
def test_a_copy_that_is_where_it_should_be_is_left_alone(state: State) -> None:
    order = in_state(state, stop_loss=Decimal("1.08"))
    price = order.price if state in WAITING else None
    for share in (None, Fraction(1)):
        assert isinstance(follow(order, Target(share, Decimal("1.08"), None, price)), Nothing)


@pytest.mark.parametrize("state", [State.OPEN, State.FILLING, State.PENDING])
@pytest.mark.parametrize("levels", list(itertools.product([None, Decimal("1.05")], [None, Decimal("1.12")])))
def test_levels_are_taken_over_and_taken_away(state: State, levels: tuple[Decimal | None, Decimal | None]) -> None:
    for before in itertools.product([None, Decimal("1.06")], [None, Decimal("1.13")]):
        order = in_state(state, stop_loss=before[0], take_profit=before[1])
        if before == levels:
            continue
        step = follow(order, Target(None, *levels))
        assert isinstance(step, Outcome) and step.event is Event.LEVELS_SET
        assert (step.order.stop_loss, step.order.take_profit, step.order.state) == (*levels, state)
        assert isinstance(follow(step.order, Target(None, *levels)), Nothing)


@pytest.mark.parametrize("state", [State.OPENING, State.CLOSING, State.PLACING, State.MODIFYING, State.CANCELLING])
def test_levels_wait_until_the_copy_is_at_rest(state: State) -> None:
    with pytest.raises(TryLater, match=state):
        follow(in_state(state), Target(None, Decimal("1.05")))


def test_levels_are_taken_over_even_where_the_market_is_already() -> None:
    """The master's is there, too; a monitor sees to it."""
    step = follow(OPEN, Target(None, Decimal("1.2"), Decimal("1.01")))
    assert isinstance(step, Outcome) and step.order.stop_loss == Decimal("1.2")


@pytest.mark.parametrize(("flow", "event"), [(Flow.LOCAL, Event.MODIFIED), (Flow.PROVIDER, Event.MODIFY_SENT)])
def test_a_pending_copy_moves_with_its_master(flow: Flow, event: Event) -> None:
    order = in_state(State.PENDING, flow=flow)
    step = follow(order, Target(None, price=Decimal("1.07")))
    assert isinstance(step, Outcome) and step.event is event
    for state in (State.PLACING, State.MODIFYING):
        with pytest.raises(TryLater):
            follow(in_state(state), Target(None, price=Decimal("1.07")))
    # a copy that has been triggered has a price of its own
    assert isinstance(follow(OPEN, Target(None, price=Decimal("1.07"))), Nothing)


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"quote": QUOTE._replace(code=RowCode.MARKET_CLOSED)}, "market_closed"),
        ({"quote": QUOTE._replace(code=RowCode.QUOTE_STALE)}, "quote_stale"),
        ({"balance": None}, "wallet_balance_invalid"),
    ],
)
def test_what_cannot_be_closed_now_is_closed_later(more: dict[str, Any], code: str) -> None:
    with pytest.raises(TryLater) as waits:
        follow(OPEN, Target(Fraction(0)), **more)
    assert waits.value.code == code


def test_what_the_provider_holds_is_closed_whatever_our_quote_says() -> None:
    order = replace(OPEN, flow=Flow.PROVIDER)
    step = follow(order, Target(Fraction(0)), quote=QUOTE._replace(code=RowCode.QUOTE_STALE))
    assert isinstance(step, Outcome) and step.event is Event.CLOSE_SENT


# ---- shares

_STEPS = st.sampled_from(["0.01", "0.1", "1", "0.001", "0.25"])
_SHARES = st.builds(Fraction, st.integers(0, 200), st.integers(1, 200)).filter(lambda share: share <= 1)


@given(st.integers(1, 20_000), _SHARES, _STEPS, st.integers(1, 30))
def test_a_share_is_the_nearest_steps_half_up_or_the_smallest_order_or_nothing(
    copied_steps: int, share: Fraction, step: str, smallest_steps: int
) -> None:
    size, smallest = Decimal(step), Decimal(step) * smallest_steps
    copied = copied_steps * size
    assume(copied >= smallest)
    lots = lots_of_share(copied, share, LotLimits(smallest, Decimal(10**6), size))
    exact = Fraction(copied) * share
    nearest = (exact / Fraction(size) + Fraction(1, 2)).__floor__() * Fraction(size)
    if nearest >= smallest:
        assert Fraction(lots) == min(nearest, Fraction(copied))
    else:
        assert Fraction(lots) == (Fraction(smallest) if 2 * exact >= Fraction(smallest) else 0)
    assert lots % size == 0
    assert 0 <= lots <= copied
    if share in (0, 1):
        assert lots == copied * int(share)


@given(st.integers(1, 500), st.lists(st.integers(1, 99), max_size=6))
def test_partial_closes_of_the_master_end_at_exactly_nothing(copied_steps: int, closed_pct: list[int]) -> None:
    copied, left = Decimal(copied_steps).scaleb(-2), Fraction(100)
    order = replace(OPEN, quantity=copied, opened=copied, asked=copied)
    for pct in closed_pct:
        left -= min(Fraction(pct), left)
        before = order.quantity
        order = all_steps(order, Target(left / 100))
        assert order.state is State.CLOSED or order.quantity <= before
        if order.state is State.CLOSED:
            break
        assert abs(Fraction(order.quantity) - Fraction(copied) * left / 100) <= Fraction(1, 200)
    assert all_steps(order, Target(Fraction(0))).state is State.CLOSED


@given(st.integers(1, 100), st.integers(0, 100), _SHARES)
def test_what_a_follower_closed_stays_closed_and_nothing_is_ever_opened(
    opened_steps: int, own_steps: int, share: Fraction
) -> None:
    opened = Decimal(opened_steps).scaleb(-2)
    quantity = max(Decimal("0.01"), min(opened, Decimal(own_steps).scaleb(-2)))
    order = replace(OPEN, quantity=quantity, opened=opened)
    allowed = lots_of_share(opened, share, TERMS.lots)
    reached = all_steps(order, Target(share))
    if allowed == 0:
        assert reached.state is State.CLOSED
    else:
        assert (reached.state, reached.quantity) == (State.OPEN, min(quantity, allowed))


def test_all_that_a_master_asks_at_once_takes_a_step_each() -> None:
    order = replace(OPEN, stop_loss=Decimal("1.05"))
    reached = all_steps(order, Target(Fraction(1, 4), Decimal("1.06"), Decimal("1.2")))
    assert (reached.quantity, reached.stop_loss, reached.take_profit) == (
        *(Decimal("0.25"), Decimal("1.06"), Decimal("1.2")),
    )
    pending = all_steps(in_state(State.PENDING), Target(None, Decimal("1.05"), None, Decimal("1.07")))
    assert (pending.stop_loss, pending.price) == (Decimal("1.05"), Decimal("1.07"))
