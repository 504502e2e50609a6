"""The life of an order as a table: nothing leaves an end, everything can come to one, the hash says what is meant."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from copyrisk._core import OrderEffect
from copyrisk.fields import order_effect
from copyrisk.orders import (
    FINISHED,
    HOLDING_LOTS,
    STATUSES,
    TRANSITIONS,
    Event,
    State,
    is_pending_type,
    next_state,
    state_of,
)
from copyrisk.terms import ExecutionStatus, OrderStatus, OrderType

LIVING = [state for state in State if state not in FINISHED]
every_state = pytest.mark.parametrize("state", State)


def reachable(start: State) -> set[State]:
    found, rest = {start}, [start]
    while rest:
        here = rest.pop()
        new = {after for (before, _), after in TRANSITIONS.items() if before is here} - found
        found |= new
        rest += new
    return found


@pytest.mark.parametrize("state", sorted(FINISHED))
def test_nothing_leaves_an_end(state: State) -> None:
    assert not [event for event in Event if next_state(state, event) is not None]


@every_state
def test_every_state_is_reached(state: State) -> None:
    assert state in reachable(State.NONE)


@pytest.mark.parametrize("state", LIVING)
def test_every_state_has_a_way_to_an_end(state: State) -> None:
    assert reachable(state) & FINISHED


@pytest.mark.parametrize("event", Event)
def test_every_event_happens_somewhere(event: Event) -> None:
    assert any(happened is event for _, happened in TRANSITIONS)


def test_nothing_leads_back_to_before_the_order() -> None:
    assert State.NONE not in TRANSITIONS.values()


def test_lots_that_are_held_go_only_by_being_closed() -> None:
    left = {after for (before, _), after in TRANSITIONS.items() if before in HOLDING_LOTS and after not in HOLDING_LOTS}
    assert left == {State.CLOSED}
    ways = {event for (before, event), after in TRANSITIONS.items() if before in HOLDING_LOTS and after is State.CLOSED}
    assert ways == {Event.CLOSED, Event.CLOSE_FILL_REPORTED}


class Life(RuleBasedStateMachine):
    """Any events, in any order: what is closed stays closed, and what never was filled is never closed."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.held_lots, self.was_finished_as = State.NONE, False, None

    @rule(event=st.sampled_from(Event))
    def happens(self, event: Event) -> None:
        self.state = next_state(self.state, event) or self.state
        self.held_lots |= self.state in HOLDING_LOTS
        if self.state in FINISHED:
            self.was_finished_as = self.was_finished_as or self.state

    @invariant()
    def an_end_is_an_end(self) -> None:
        assert self.was_finished_as in (None, self.state)
        assert self.state is not State.CLOSED or self.held_lots
        assert self.state not in (State.CANCELLED, State.REJECTED) or not self.held_lots


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, deadline=None)


# ---- what the hash says


@pytest.mark.parametrize("state", [state for state in State if state is not State.NONE])
def test_a_state_is_read_as_it_was_written(state: State) -> None:
    assert state_of(*STATUSES[state], state) is state
    assert state_of(*STATUSES[state], None) is (State.OPEN if state in HOLDING_LOTS else state)


@pytest.mark.parametrize("state", [state for state in State if state is not State.NONE])
def test_the_valuation_sees_what_the_state_means(state: State) -> None:
    effect = order_effect(*STATUSES[state])
    assert (effect == OrderEffect.EXECUTED) == (state in HOLDING_LOTS)
    assert effect != OrderEffect.EFFECT_UNKNOWN
    if state is State.OPENING:
        assert effect == OrderEffect.RESERVED


@pytest.mark.parametrize("execution_status", ["", *ExecutionStatus])
@pytest.mark.parametrize("order_status", ["", *OrderStatus])
def test_what_counts_as_a_position_can_be_closed_and_nothing_else(order_status: str, execution_status: str) -> None:
    """Whatever two statuses other services write: orders and valuation must not disagree about what is held."""
    effect = order_effect(
        OrderStatus(order_status) if order_status else None,
        ExecutionStatus(execution_status) if execution_status else None,
    )
    expected: dict[int, set[State | None]] = {
        OrderEffect.EXECUTED: {*HOLDING_LOTS},
        OrderEffect.RESERVED: {State.OPENING, State.MODIFYING},
        OrderEffect.IDLE: {*FINISHED, State.PENDING, State.PLACING, State.CANCELLING},
        OrderEffect.EFFECT_UNKNOWN: {None},
    }
    for recorded in (None, *State):
        state = state_of(order_status, execution_status, recorded)
        assert state in expected[effect] or (recorded in FINISHED and state is recorded)


@pytest.mark.parametrize("word", ["open", "OPEN ", "FILLED", "None", "0", "\N{SNOWMAN}", "OPEN\n"])
def test_a_word_that_is_no_status_is_no_state(word: str) -> None:
    assert state_of(word, "EXECUTED", None) is None
    assert state_of("OPEN", word, None) is None
    assert state_of(word, word, State.OPEN) is None


def test_pending_types_are_those_with_a_price() -> None:
    assert {kind for kind in OrderType if not is_pending_type(kind)} == {OrderType.BUY, OrderType.SELL}
    assert all(kind.side.is_buy is kind.is_buy and not is_pending_type(kind.side) for kind in OrderType)
