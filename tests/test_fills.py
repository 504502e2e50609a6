"""Reports of a provider, dropped, repeated and in any order: our books come to what the provider truly did, once."""

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from random import Random
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from copyrisk.errors import TryLater
from copyrisk.fills import Break, apply_report
from copyrisk.orders import FINISHED, HOLDING_LOTS, Event, State
from copyrisk.pricing import Commission
from copyrisk.provider_reports import Report, ReportStatus
from copyrisk.records import Order, Request
from copyrisk.situation import Nothing, Outcome
from copyrisk.terms import Flow, OrderType
from tests.order_twin import (
    Position,
    carried_out,
    charge,
    commissions,
    conditions,
    deliveries,
    lots,
    market,
    order_in,
    prices,
    report_of,
    situation,
    stored,
    true_reports,
)

PROVIDER = Flow.PROVIDER
CHARGED = market(terms=conditions(commission=Commission(Decimal("3.5"), False, True, True)))


def in_flight(state: State, action: str, **changes: Any) -> tuple[Order, Request]:
    """An order and the request it waits for."""
    order = order_in(state, PROVIDER, **changes)
    request = order.request_of(action)
    assert request is not None
    return order, request


def applied(order: Order, report: Report, **of_situation: Any) -> Outcome | Nothing:
    return apply_report(report, situation(order, **of_situation))


def after(order: Order, *reports: Report, **of_situation: Any) -> Order:
    """The order after reports, written and read again each time; late ones change nothing."""
    for report in reports:
        outcome = applied(order, report, **of_situation)
        if isinstance(outcome, Outcome):
            assert outcome.before == order
            order = stored(outcome.order)
    return order


# ---- breaks

OPENING = in_flight(State.OPENING, "open")
FILLING = in_flight(State.FILLING, "open")  # 1 of 2 lots at 1.08, report 1
CLOSING = in_flight(State.CLOSING, "close")
MODIFYING = in_flight(State.MODIFYING, "modify")
CANCELLING = in_flight(State.CANCELLING, "cancel")
OPENED = in_flight(State.OPEN, "open")  # 1 lot, report 2 was the last
OTHER = Request("r9", "open", asked=Decimal(1))


@pytest.mark.parametrize(
    ("at", "status", "filled", "price", "code"),
    [
        ((OPENING[0], OTHER), "filled", "1", "1.08", "unknown_request"),
        (OPENING, "partial", "1.01", "1.08", "overfill"),
        (OPENING, "filled", "2", "1.08", "overfill"),
        (OPENING, "cancelled", "1.01", "1.08", "overfill"),
        (OPENING, "filled", "0.99", "1.08", "fill_incomplete"),
        (FILLING, "partial", "0.99", "1.08", "filled_quantity_decreased"),
        (FILLING, "filled", "0.5", "1.08", "filled_quantity_decreased"),
        (FILLING, "cancelled", "0", "", "filled_quantity_decreased"),
        (FILLING, "rejected", "0.5", "1.08", "filled_quantity_decreased"),
        (OPENED, "partial", "0.5", "1.08", "report_after_the_end"),
        (OPENED, "cancelled", "0", "", "report_after_the_end"),
        (OPENED, "filled", "2", "1.08", "report_after_the_end"),
        (CLOSING, "filled", "1.5", "1.09", "overfill"),
        (CLOSING, "filled", "0.5", "1.09", "fill_incomplete"),
        (MODIFYING, "partial", "0.5", "1.09", "status_does_not_fit"),
        (MODIFYING, "filled", "1", "1.09", "status_does_not_fit"),
        (CANCELLING, "filled", "1", "1.09", "status_does_not_fit"),
        # an acceptance says that nothing is filled; one that says more must not pass for a fill that was booked
        (OPENING, "accepted", "0.5", "1.08", "status_does_not_fit"),
        (OPENING, "accepted", "1", "1.08", "status_does_not_fit"),
        (CLOSING, "accepted", "0.5", "1.09", "status_does_not_fit"),
        (CLOSING, "accepted", "1", "1.09", "status_does_not_fit"),
    ],
)
def test_a_report_that_contradicts_our_books_is_a_break(
    at: tuple[Order, Request], status: str, filled: str, price: str, code: str
) -> None:
    order, request = at
    with pytest.raises(Break) as found:
        applied(order, report_of(order.id, request, status, 7, filled, price))
    assert found.value.code == code
    assert len(str(found.value)) < 200


def test_a_report_for_no_order_is_a_break() -> None:
    """Neither an id that nobody knows nor another account's: the order is looked for in the account that is named."""
    with pytest.raises(Break) as found:
        apply_report(report_of("O1", OTHER, "filled", 1, "1", "1.08"), situation(None, market=None))
    assert found.value.code == "unknown_order"


def test_no_more_is_closed_than_is_open() -> None:
    """Another service has closed half of it meanwhile."""
    order, request = in_flight(State.CLOSING, "close", quantity=Decimal("0.5"))
    with pytest.raises(Break) as found:
        applied(order, report_of(order.id, request, "filled", 1, "1", "1.09"))
    assert found.value.code == "overfill"


def test_the_codes_are_documented() -> None:
    codes = {"unknown_order", "unknown_request", "report_after_the_end", "filled_quantity_decreased", "overfill"}
    codes |= {"fill_incomplete", "status_does_not_fit", "report_does_not_fit"}
    assert not [code for code in codes if f"`{code}`" not in (apply_report.__doc__ or "")]


@pytest.mark.parametrize("at", [FILLING, OPENED], ids=["filling", "opened"])
@pytest.mark.parametrize("status", ["accepted", "partial", "filled", "rejected", "cancelled"])
def test_an_old_report_changes_nothing(at: tuple[Order, Request], status: str) -> None:
    order, request = at
    price = "" if status == "accepted" else "1.3"
    for sequence in range(1, request.sequence + 1):
        found = applied(order, report_of(order.id, request, status, sequence, "2" if price else "0", price))
        assert isinstance(found, Nothing) and found.code == "report_late"


# ---- single reports


@pytest.mark.parametrize(
    ("at", "status", "filled", "event", "state"),
    [
        (OPENING, "accepted", "0", None, State.OPENING),
        (OPENING, "partial", "0.4", Event.PART_REPORTED, State.FILLING),
        (OPENING, "partial", "1", Event.FILL_REPORTED, State.OPEN),
        (OPENING, "filled", "1", Event.FILL_REPORTED, State.OPEN),
        (OPENING, "rejected", "0", Event.REJECT_REPORTED, State.REJECTED),
        (OPENING, "cancelled", "0", Event.END_REPORTED, State.CANCELLED),
        (OPENING, "cancelled", "0.4", Event.END_REPORTED, State.OPEN),
        (OPENING, "rejected", "0.4", Event.REJECT_REPORTED, State.OPEN),
        (FILLING, "cancelled", "1", Event.END_REPORTED, State.OPEN),
        (FILLING, "rejected", "1.5", Event.REJECT_REPORTED, State.OPEN),
        (FILLING, "filled", "2", Event.FILL_REPORTED, State.OPEN),
        (CLOSING, "accepted", "0", None, State.CLOSING),
        (CLOSING, "partial", "0.4", Event.CLOSE_PART_REPORTED, State.CLOSING),
        (CLOSING, "filled", "1", Event.CLOSE_FILL_REPORTED, State.CLOSED),
        (CLOSING, "rejected", "0", Event.CLOSE_REJECT_REPORTED, State.OPEN),
        (CLOSING, "cancelled", "0.4", Event.CLOSE_REJECT_REPORTED, State.OPEN),
        (MODIFYING, "accepted", "0", Event.MODIFY_REPORTED, State.PENDING),
        (MODIFYING, "rejected", "0", Event.MODIFY_REJECT_REPORTED, State.PENDING),
        (CANCELLING, "rejected", "0", Event.CANCEL_REJECT_REPORTED, State.PENDING),
    ],
)
def test_what_a_report_does(
    at: tuple[Order, Request], status: str, filled: str, event: Event | None, state: State
) -> None:
    order, request = at
    outcome = applied(order, report_of(order.id, request, status, 7, filled, "1.09"), market=CHARGED)
    assert isinstance(outcome, Outcome)
    assert outcome.order.state is state and (event is None or outcome.event is event)
    assert outcome.before == order
    assert (outcome.booking is not None) == (request.action == "close" and Decimal(filled) > 0)
    again = applied(stored(outcome.order), report_of(order.id, request, status, 7, filled, "1.09"), market=CHARGED)
    assert isinstance(again, Nothing)


def test_a_partial_fill_books_what_was_filled_and_not_what_was_ordered() -> None:
    order, request = FILLING
    part = after(order, report_of("O1", request, "partial", 2, "1.5", "1.09"), market=CHARGED)
    assert (part.quantity, part.opened, part.asked, part.price) == (Decimal("1.5"), Decimal("1.5"), 2, Decimal("1.09"))
    assert (part.margin_usd, part.reserved_usd, part.commission_usd) == (1620, 540, Decimal("5.25"))
    ended = after(part, report_of("O1", request, "cancelled", 3, "1.5", "1.09"), market=CHARGED)
    assert (ended.state, ended.quantity, ended.reserved_usd, ended.whole_margin_usd) == (
        State.OPEN,
        Decimal("1.5"),
        0,
        1620,
    )


def test_a_placed_order_is_what_its_fill_makes_it() -> None:
    order, request = in_flight(State.PENDING, "place")
    filled = after(order, report_of("O1", request, "filled", 2, "1", "1.0799"))
    assert (filled.order_type, filled.price, filled.state) == (OrderType.BUY, Decimal("1.0799"), State.OPEN)


@pytest.mark.parametrize("state", [State.PLACING, State.MODIFYING, State.CANCELLING])
def test_a_fill_overtakes_what_is_under_way(state: State) -> None:
    """What was asked of a pending order is answered after its fill: that changes nothing but is remembered."""
    order, request = in_flight(state, "place")
    part = after(order, report_of("O1", request, "partial", 5, "0.4", "1.0799"))
    assert part.state is State.FILLING
    asked = order.request_of("modify", "cancel")
    if asked is None:
        late = applied(part, report_of("O1", request, "accepted", 1))
        assert isinstance(late, Nothing)
        return
    for status in ("accepted", "rejected"):
        answered = after(part, report_of("O1", asked, status, 1))
        assert replace(answered, requests=part.requests) == part
        assert answered.requests[asked.id].is_final


def test_a_modification_is_done_when_it_is_reported() -> None:
    order, request = MODIFYING
    assert after(order, report_of("O1", request, "accepted", 1)).price == Decimal("1.07")
    rejected = after(order, report_of("O1", request, "rejected", 1))
    assert rejected.price == Decimal("1.08")
    again = carried_out("modify", rejected, order_price="1.06")
    assert again.event is Event.MODIFY_SENT and again.request["request_id"] != request.id


def test_a_close_that_was_rejected_can_be_sent_again() -> None:
    order, request = CLOSING
    rejected = after(order, report_of("O1", request, "rejected", 1))
    again = carried_out("close", rejected)
    assert again.request["request_id"] not in (request.id, "r1")
    closed = after(stored(again.order), report_of("O1", again.order.request_of("close"), "filled", 1, "1", "1.09"))  # type: ignore[arg-type]
    assert closed.state is State.CLOSED


def test_two_closes_of_one_order_pay_once() -> None:
    order, request = CLOSING
    report = report_of("O1", request, "filled", 1, "1", "1.09")
    first = applied(order, report)
    assert isinstance(first, Outcome) and first.booking is not None
    assert first.booking.amount_usd == 1000 == first.order.net_profit_usd
    assert isinstance(applied(stored(first.order), report), Nothing)


#: The provider answers both requests of a cancelled order, the one to cancel and the one that is cancelled.
@pytest.mark.parametrize("cancel_first", [True, False])
@pytest.mark.parametrize("filled", ["0", "0.4"])
def test_a_cancelled_order_ends_as_the_provider_says(cancel_first: bool, filled: str) -> None:
    """What was filled before it was cancelled is a position, whichever answer comes first."""
    order, cancel = CANCELLING
    done = report_of("O1", cancel, "accepted", 1)
    ended = report_of("O1", order.requests["r1"], "cancelled", 3, filled, "1.0799")
    found = after(order, *((done, ended) if cancel_first else (ended, done)))
    assert found.state is (State.CANCELLED if filled == "0" else State.OPEN)
    assert found.opened == Decimal(filled)


def test_a_second_acceptance_is_no_contradiction() -> None:
    order, request = in_flight(State.PLACING, "place")
    accepted = after(order, report_of("O1", request, "accepted", 1))
    assert after(accepted, report_of("O1", request, "accepted", 2)).state is State.PENDING


def test_a_report_that_fills_nothing_new_changes_no_price() -> None:
    """Commission of later fills is the difference to what was charged, and that was charged at the old price."""
    terms = conditions(commission=Commission(Decimal("0.01"), True, False, True))
    order, request = CLOSING
    steps = [("partial", 1, "0.4", "1.09"), ("partial", 2, "0.4", "1.5"), ("filled", 3, "1", "1.10")]
    reports = [report_of("O1", request, status, n, filled, price) for status, n, filled, price in steps]
    closed = after(order, *reports, market=market(terms=terms))
    assert closed.paid_commission_usd == 11 and closed.net_profit_usd == 1989


def test_why_an_order_was_taken_back_is_remembered() -> None:
    order, cancel = in_flight(State.CANCELLING, "cancel", reason="insufficient_margin")
    done = report_of("O1", cancel, "accepted", 1)
    ended = report_of("O1", order.requests["r1"], "cancelled", 3)
    for reports in ((done, ended), (ended, done)):
        assert after(order, *reports).reason == "insufficient_margin"
    rejected = after(order, report_of("O1", cancel, "rejected", 1))
    assert (rejected.state, rejected.reason) == (State.PENDING, "")


@pytest.mark.parametrize("reason", ["insufficient_margin", "cancelled"])
def test_a_reason_of_a_cancel_does_not_stay_with_a_position(reason: str) -> None:
    order, cancel = in_flight(State.CANCELLING, "cancel", reason=reason)
    filled = after(order, report_of("O1", order.requests["r1"], "filled", 3, "1", "1.08"))
    assert filled.state is State.OPEN and filled.reason == ""
    assert after(filled, report_of("O1", cancel, "rejected", 1)).reason == ""


def test_what_cannot_be_booked_now_is_booked_later() -> None:
    order, request = CLOSING
    report = report_of("O1", request, "filled", 1, "1", "1.09")
    for of_situation, code in (
        ({"balance": None}, "wallet_balance_invalid"),
        ({"market": replace(market(), profit_is_usd=False)}, "conversion_rate_missing"),
    ):
        with pytest.raises(TryLater) as later:
            applied(order, report, **of_situation)
        assert later.value.code == code
    assert after(order, report, balance=Decimal(-5)).state is State.CLOSED


# ---- everything a provider may do to one request


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(["open", "place"]), lots, commissions)
def test_an_opening_comes_to_what_the_provider_did(
    data: st.DataObject, action: str, asked: Decimal, terms: Commission
) -> None:
    at = State.OPENING if action == "open" else State.PLACING
    order, request = in_flight(
        at, action, quantity=asked, asked=asked, whole_margin_usd=data.draw(st.decimals(0, 9999, places=2))
    )
    request = replace(request, asked=asked)
    order = order.with_request(request)
    truth = data.draw(true_reports("O1", request))
    end = truth[-1]
    there = market(terms=conditions(commission=terms))
    reserved, now = Decimal(0), order
    for report in data.draw(deliveries(truth)):
        outcome = applied(now, report, market=there)
        if isinstance(outcome, Outcome):
            reserved += outcome.reserved_change_usd
            now = stored(outcome.order)
    assert now.opened == end.filled and reserved == 0 == now.reserved_usd
    assert now.requests["r1"].is_final and now.requests["r1"].sequence == end.sequence
    if end.filled == 0:
        assert now.state is (State.REJECTED if end.status is ReportStatus.REJECTED else State.CANCELLED)
        assert (now.commission_usd, now.margin_usd) == (0, 0)
        return
    filled, average = Fraction(end.filled), Fraction(end.average_price)
    assert (now.state, now.price, now.quantity) == (State.OPEN, end.average_price, end.filled)
    assert now.commission_usd == charge(terms, filled, filled * 100_000 * average, is_entry=True)
    assert now.contract_value == end.filled * 100_000 and now.margin_usd == now.whole_margin_usd


@settings(max_examples=150, deadline=None)
@given(st.data(), st.booleans(), lots, prices, commissions)
def test_a_close_comes_to_what_the_provider_did(
    data: st.DataObject, is_buy: bool, held: Decimal, opened_at: Decimal, terms: Commission
) -> None:
    """Each booking is the difference to what was booked, in exact fractions; all of them together, the whole."""
    entry, swap = data.draw(st.decimals(0, 99, places=2)), data.draw(st.decimals(-99, 99, places=2))
    asked = data.draw(lots)
    assume(asked <= held)
    order, request = in_flight(State.CLOSING, "close", price=opened_at, quantity=held, opened=held, asked=held)
    request = replace(request, asked=asked)
    order = replace(order, order_type=OrderType.BUY if is_buy else OrderType.SELL).with_request(request)
    order = replace(order, commission_usd=entry, swap_usd=swap, contract_value=held * 100_000)
    twin = Position(
        is_buy, Fraction(opened_at), Fraction(held), Fraction(100_000), terms, Fraction(entry), Fraction(swap)
    )
    there, seen, before = market(terms=conditions(commission=terms)), 0, (Fraction(0), Fraction(0))
    truth = data.draw(true_reports("O1", request))
    booked: list[Fraction] = []
    for report in data.draw(deliveries(truth)):
        outcome = applied(order, report, market=there)
        assert isinstance(outcome, Outcome) == (report.sequence > seen)
        if isinstance(outcome, Nothing):
            continue
        seen, order = report.sequence, stored(outcome.order)
        if outcome.booking is not None:
            booked.append(Fraction(outcome.booking.amount_usd))
            so_far = (Fraction(report.filled), Fraction(report.average_price))
            twin.fill_close(before, *so_far)
            before = so_far
    end = truth[-1]
    assert booked == twin.bookings and order.net_profit_usd == sum(booked)
    is_closed = end.filled == held
    assert (order.state, order.opened) == (State.CLOSED if is_closed else State.OPEN, held)
    assert order.quantity == (held if is_closed else held - end.filled)  # of a closed order all it was
    assert (order.commission_usd, order.swap_usd) == (twin.commission, twin.swap)
    assert (order.paid_commission_usd, order.paid_swap_usd) == (twin.charged, twin.paid_swap)
    assert not is_closed or (order.paid_swap_usd == swap and order.commission_usd == 0)
    if end.filled:
        average = Fraction(end.average_price)
        whole = twin.gross(Fraction(end.filled), average) - twin.charged + twin.paid_swap
        assert abs(sum(booked) - whole) <= Fraction(len(booked), 200)
        assert twin.charged - (Fraction(entry) - twin.commission) == twin.exit_charge(Fraction(end.filled), average)


# ---- everything that may happen to one order


class OneOrder:
    """Commands as the order's state allows them, a provider that does as it likes, a courier nobody can trust."""

    def __init__(self, luck: Random) -> None:
        self.luck = luck
        self.reports: list[Report] = []  # all that were ever made
        self.truth: dict[str, Report] = {}  # the last one of each request
        self.unanswered: dict[str, Request] = {}
        self.applied: dict[str, int] = {}
        self.booked = self.reserved = Decimal(0)
        kind = luck.choice(["open", "pending", "pending"])
        side = luck.choice({"open": ("BUY", "SELL"), "pending": ("BUY_LIMIT", "SELL_STOP")}[kind])
        asked = Decimal(luck.randint(2, 300)) / 100
        placed = carried_out(kind, None, sending_orders="barclays", order_type=side, order_quantity=f"{asked:f}")
        self._take(placed.with_margin(asked * 1080))

    def _take(self, outcome: Outcome) -> None:
        self.reserved += outcome.reserved_change_usd
        if outcome.booking is not None:
            self.booked += outcome.booking.amount_usd
        self.order = stored(outcome.order)
        if outcome.request:
            asked = outcome.order.requests[outcome.request["request_id"]]
            self.unanswered[asked.id] = asked

    def is_commanded(self) -> None:
        kinds = {State.PENDING: ["modify", "cancel"], State.OPEN: ["close"], State.FILLING: ["stop_loss"]}
        if self.order.state not in kinds:
            return
        kind = self.luck.choice(kinds[self.order.state])
        said: dict[str, Any] = {}
        if kind == "modify":
            said["order_price"] = "1.08" if self.order.order_type.is_buy else "1.07"
        elif kind == "close":
            said["order_quantity"] = f"{self.luck.randint(1, int(self.order.quantity * 100)) / Decimal(100):f}"
        self._take(carried_out(kind, self.order, market=CHARGED, **said))

    def is_answered(self) -> None:
        """The provider does something about one of its requests."""
        if not self.unanswered:
            return
        request = self.unanswered.pop(self.luck.choice([*self.unanswered]))
        if request.action in ("modify", "cancel"):
            self._answer_change(request)
            return
        known = self.truth.get(request.id)
        if known is None and self.luck.random() < 0.6:
            self._report(request, "accepted")
            self.unanswered[request.id] = request
        elif self.luck.random() < 0.6:
            self._fill(request, known.filled if known else Decimal(0), known.average_price if known else Decimal(0))
        elif self.luck.random() < 0.5:
            self._report(request, self.luck.choice(["rejected", "cancelled"]), *self._done(request))
        else:
            self.unanswered[request.id] = request

    def _done(self, request: Request) -> tuple[Decimal, Decimal]:
        known = self.truth.get(request.id)
        return (known.filled, known.average_price) if known else (Decimal(0), Decimal(0))

    def _fill(self, request: Request, was: Decimal, average: Decimal) -> None:
        more = Decimal(self.luck.randint(1, int((request.asked - was) * 100))) / 100
        worth = was * average + more * (1 + Decimal(self.luck.randint(0, 10**5)).scaleb(-5))
        filled = was + more
        status = "filled" if filled == request.asked else "partial"
        self._report(request, status, filled, round(worth / filled, 8))
        if status == "partial":
            self.unanswered[request.id] = request

    def _answer_change(self, change: Request) -> None:
        """A pending order that still rests is changed; one that is done is not."""
        place = next(iter(self.order.requests.values()))
        if place.id not in self.unanswered:
            self._report(change, "rejected")
            return
        self._report(change, "accepted")
        if change.action == "cancel":
            del self.unanswered[place.id]
            self._report(place, "cancelled", *self._done(place))

    def _report(
        self, request: Request, status: str, filled: Decimal = Decimal(0), average: Decimal = Decimal(0)
    ) -> None:
        sequence = self.truth[request.id].sequence + 1 if request.id in self.truth else 1
        made = report_of(self.order.id, request, status, sequence, f"{filled:f}", f"{average:f}")
        self.truth[request.id] = made
        self.reports.append(made)

    def is_delivered(self) -> None:
        """Any report that was ever made, a new one as likely as all old ones."""
        if self.reports:
            self._deliver(self.luck.choice([self.luck.choice(self.reports), *self.reports[-2:]]))

    def _deliver(self, report: Report) -> None:
        outcome = applied(self.order, report, market=CHARGED)  # what a provider truly says is never a break
        if isinstance(outcome, Nothing):
            return
        assert report.sequence > self.applied.get(report.request_id, 0)
        self.applied[report.request_id] = report.sequence
        assert self.order.state not in FINISHED or outcome.order.state is self.order.state
        self._take(outcome)

    def comes_to_the_truth(self) -> None:
        """The last report of each request comes through, in any order: our books say what the provider's do."""
        last = [*self.truth.values()]
        for report in self.luck.sample(last, len(last)):
            self._deliver(report)
        if self.unanswered or not last:
            return
        opening = self.truth[next(iter(self.order.requests))]
        closed = sum((report.filled for report in last if report.action == "close"), Decimal(0))
        assert self.order.opened == opening.filled
        if opening.filled == 0:
            assert self.order.state in (State.REJECTED, State.CANCELLED)
        elif closed == opening.filled:
            assert self.order.state is State.CLOSED
        else:
            assert (self.order.state, self.order.quantity) == (State.OPEN, opening.filled - closed)
            assert self.order.price == opening.average_price

    def check_the_books(self) -> None:
        order = self.order
        assert self.booked == order.net_profit_usd
        assert self.reserved == order.reserved_usd
        assert order.state is State.FILLING or order.reserved_usd == 0
        assert order.state not in HOLDING_LOTS or 0 < order.quantity <= order.opened <= order.asked


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_our_books_come_to_what_the_provider_did(seed: int) -> None:
    """Whatever happens to an order, in whatever order we hear of it."""
    one = OneOrder(Random(seed))
    steps = [one.is_commanded, one.is_answered, one.is_delivered, one.is_delivered]
    for n in range(60):
        one.luck.choice(steps)()
        one.check_the_books()
        if n % 12 == 11:
            one.comes_to_the_truth()
            one.check_the_books()
