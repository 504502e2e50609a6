"""Orders for tests: short ways to say a market, an order, a command, a report; the slow twin of what closing earns.

The twin knows contract section 4 and exact fractions, nothing of `Decimal`. The provider here knows the truth.
"""

import json
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

from hypothesis import strategies as st

from copyrisk import identifiers
from copyrisk._core import RowCode
from copyrisk.commands import Command, parse_command
from copyrisk.conditions import Conditions, LotLimits
from copyrisk.errors import Refused
from copyrisk.execution import decide
from copyrisk.orders import FINISHED, HOLDING_LOTS, STATUSES, State
from copyrisk.pricing import Commission, Spread
from copyrisk.provider_reports import Report, parse_report
from copyrisk.records import Order, Request, order_fields, read_order, record_text
from copyrisk.situation import NO_QUOTE, Outcome, Quote, Situation, SymbolMarket
from copyrisk.terms import Flow, OrderType, RateSide

ACCOUNT = identifiers.account("live", "1001")
FREE = Commission(Decimal(0), is_percent=False, on_entry=False, on_exit=False)
PENDING_STATES = (State.PLACING, State.PENDING, State.MODIFYING, State.CANCELLING)


def quote(bid: str, ask: str, code: RowCode = RowCode.OK) -> Quote:
    return Quote(Decimal(bid), Decimal(ask), code)


def conditions(
    *, size: str = "100000", spread: str = "0", pip: str = "0", commission: Commission = FREE, **lots: str
) -> Conditions:
    limits = LotLimits(**{name: Decimal(value) for name, value in lots.items()})
    return Conditions(Decimal(size), 1, Spread(Decimal(spread), Decimal(pip)), commission, limits)


def market(
    bid: str = "1.08450",
    ask: str = "1.08455",
    *,
    code: RowCode = RowCode.OK,
    terms: Conditions | Refused | None = None,
    direct: Quote = NO_QUOTE,
    inverse: Quote = NO_QUOTE,
    side: RateSide = RateSide.ASK,
) -> SymbolMarket:
    """EURUSD; with a quote of a conversion pair, a symbol whose profit is in another currency."""
    profit_is_usd = direct is NO_QUOTE and inverse is NO_QUOTE
    return SymbolMarket("EURUSD", quote(bid, ask, code), terms or conditions(), profit_is_usd, direct, inverse, side)


MARKET = market()


def situation(order: Order | None = None, **changes: Any) -> Situation:
    said: dict[str, Any] = {
        "account": ACCOUNT if order is None else order.account,
        "now_ms": 1_700_000_000_123,
        "balance": Decimal(10_000),
        "sending_orders": "rock",
        "is_active": True,
        "order": order,
        "market": MARKET,
        "order_count": 0,
    }
    return Situation(**(said | changes))


def command(kind: str, entry_id: str = "1-1", **fields: str) -> Command:
    """A command; what its type needs and is not given is filled in."""
    needed = {
        "open": {"symbol": "EURUSD", "order_type": "BUY", "order_quantity": "1"},
        "pending": {"symbol": "EURUSD", "order_type": "BUY_LIMIT", "order_quantity": "1", "order_price": "1.08"},
        "modify": {"order_price": "1.07"},
    }
    whose = {"type": kind, "user_type": "live", "user_id": "1001", "order_id": "O1"}
    return parse_command(entry_id, whose | needed.get(kind, {}) | fields)


def report_of(
    order_id: str, request: Request, status: str, sequence: int, filled: str = "0", price: str = ""
) -> Report:
    """A report, through its grammar."""
    whose = {"user_type": ACCOUNT.type.value, "user_id": ACCOUNT.id, "order_id": order_id, "reason": status}
    said = {"request_id": request.id, "action": request.action, "status": status, "sequence": str(sequence)}
    return parse_report(whose | said | {"filled_quantity": filled, "average_price": price})


def order_in(state: State, flow: Flow | None = Flow.LOCAL, **changes: Any) -> Order:
    """One lot of EURUSD in some state, with the requests that brought it there."""
    is_pending = state in PENDING_STATES
    lot = Decimal(1)
    holds = state in HOLDING_LOTS or state is State.CLOSED
    order = Order(
        account=ACCOUNT,
        id="O1",
        symbol="EURUSD",
        order_type=OrderType.BUY_LIMIT if is_pending else OrderType.BUY,
        state=state,
        flow=flow,
        price=Decimal("1.08"),
        quantity=lot,
        created_at="2023-11-14T22:13:20.123Z",
        asked=lot * 2 if state is State.FILLING else lot,
        opened=lot if holds else Decimal(0),
        margin_usd=Decimal(1080) if holds else Decimal(0),
        whole_margin_usd=Decimal(2160) if state is State.FILLING else Decimal(1080),
        contract_value=Decimal(100_000),
    )
    if flow is Flow.PROVIDER:
        order = replace(order, attempts=2, requests={r.id: r for r in _requests(state)})
    return replace(order, **changes)


def _requests(state: State) -> list[Request]:
    lot, action = Decimal(1), "place" if state in PENDING_STATES else "open"
    opening = Request("r1", action, asked=lot)
    if state is State.FILLING:
        return [replace(opening, asked=lot * 2, price=Decimal("1.08"), sequence=1, filled=lot)]
    if state in (State.OPEN, State.CLOSING, State.CLOSED):
        opening = replace(opening, price=Decimal("1.08"), sequence=2, filled=lot, is_final=True)
    second = {State.CLOSING: "close", State.MODIFYING: "modify", State.CANCELLING: "cancel"}.get(state)
    if second is None:
        return [opening]
    return [opening, Request("r2", second, asked=lot, price=Decimal("1.07") if second == "modify" else Decimal(0))]


def stored(order: Order) -> Order:
    """The order as it is read again after it was written."""
    fields = {} if order.state in FINISHED else order_fields(order)
    found = read_order(order.account, order.id, fields, record_text(order))
    assert found is not None
    return found


def foreign(order_status: str = "OPEN", execution_status: str = "EXECUTED", **fields: str) -> dict[str, str]:
    """An order's hash as another service writes it."""
    said = {"symbol": "EURUSD", "order_type": "BUY", "order_price": "1.08", "order_quantity": "1"}
    statuses = {"order_status": order_status, "execution_status": execution_status}
    return said | {name: text for name, text in statuses.items() if text} | fields


def carried_out(kind: str, order: Order | None, **changes: Any) -> Outcome:
    """The outcome of a command that is expected to have one; `changes` are of the situation or the command."""
    of_situation = {name: changes.pop(name) for name in ("market", "sending_orders", "balance") if name in changes}
    outcome = decide(command(kind, **changes), situation(order, **of_situation))
    assert isinstance(outcome, Outcome)
    return outcome


# ---- what is booked, in exact fractions


def half_up(amount: Fraction) -> Fraction:
    """Two decimals, half a cent away from zero."""
    whole = (abs(amount) * 200 + 1) // 2
    return Fraction(whole if amount >= 0 else -whole, 100)


def charge(terms: Commission, lots: Fraction, value_usd: Fraction, *, is_entry: bool) -> Fraction:
    """Commission of one execution."""
    if not (terms.on_entry if is_entry else terms.on_exit):
        return Fraction(0)
    rate = Fraction(terms.rate)
    return half_up(value_usd * rate / 100 if terms.is_percent else lots * rate)


@dataclass
class Position:
    """Lots that are open, with their commission and swap; closing them books."""

    is_buy: bool
    price: Fraction
    lots: Fraction
    size: Fraction
    terms: Commission
    commission: Fraction = Fraction(0)
    swap: Fraction = Fraction(0)
    bookings: list[Fraction] = field(default_factory=list)
    charged: Fraction = Fraction(0)  # commission of entry and exit, so far
    paid_swap: Fraction = Fraction(0)

    def gross(self, lots: Fraction, price: Fraction) -> Fraction:
        return (price - self.price if self.is_buy else self.price - price) * lots * self.size

    def exit_charge(self, lots: Fraction, price: Fraction) -> Fraction:
        return charge(self.terms, lots, lots * self.size * price, is_entry=False)

    def close(self, lots: Fraction, gross: Fraction, exit_charge: Fraction) -> None:
        """Close some lots that earn `gross` USD."""
        is_last = lots == self.lots
        entry = self.commission if is_last else half_up(self.commission * lots / self.lots)
        swap = self.swap if is_last else half_up(self.swap * lots / self.lots)
        self.bookings.append(half_up(gross - entry - exit_charge + swap))
        self.lots, self.commission, self.swap = self.lots - lots, self.commission - entry, self.swap - swap
        self.charged, self.paid_swap = self.charged + entry + exit_charge, self.paid_swap + swap

    def fill_close(self, before: tuple[Fraction, Fraction], filled: Fraction, average: Fraction) -> None:
        """A close that had filled so many lots at such an average price has now filled more."""
        was, was_average = before
        gross = self.gross(filled, average) - self.gross(was, was_average)
        self.close(filled - was, gross, self.exit_charge(filled, average) - self.exit_charge(was, was_average))


# ---- a provider

lots = st.integers(1, 300).map(lambda n: Decimal(n) / 100)
prices = st.decimals("0.5", "2", places=5)
commissions = st.builds(
    Commission,
    st.sampled_from([Decimal(0), Decimal("3.5"), Decimal("0.003"), Decimal("7.777")]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)


@st.composite
def fills(draw: st.DrawFn, asked: Decimal) -> list[tuple[Decimal, Decimal]]:
    """Lots filled so far and their average price, fill by fill; the last may be all that was asked for, or less."""
    count, steps = draw(st.integers(0, 4)), int(asked * 100)
    cuts = sorted(draw(st.sets(st.integers(1, steps), min_size=min(count, steps), max_size=min(count, steps))))
    found: list[tuple[Decimal, Decimal]] = []
    worth, before = Fraction(0), 0
    for cut in cuts:
        worth += (cut - before) * Fraction(draw(prices))
        average = Decimal(round(worth / cut * 10**8)).scaleb(-8)  # as a provider says it: rounded
        found.append((Decimal(cut) / 100, average))
        before = cut
    return found


@st.composite
def true_reports(draw: st.DrawFn, order_id: str, request: Request) -> list[Report]:
    """What a provider truly reports of an `open`, `place` or `close`, in its order."""
    said: list[tuple[str, Decimal, Decimal]] = []
    if draw(st.booleans()):
        said.append(("accepted", Decimal(0), Decimal(0)))
    made = draw(fills(request.asked))
    said += [("filled" if filled == request.asked else "partial", filled, average) for filled, average in made]
    if not made or made[-1][0] != request.asked:
        end = draw(st.sampled_from(["rejected", "cancelled"]))
        said.append((end, *(made[-1] if made else (Decimal(0), Decimal(0)))))
    return [
        report_of(order_id, request, status, i + 1, f"{filled:f}", f"{average:f}")
        for i, (status, filled, average) in enumerate(said)
    ]


@st.composite
def deliveries(draw: st.DrawFn, reports: list[Report]) -> list[Report]:
    """Dropped, repeated and in any order; but the last one arrives."""
    some = draw(st.lists(st.sampled_from(reports), max_size=2 * len(reports)))
    return draw(st.permutations([*some, reports[-1]]))


def spoiled(order: Order, **changes: Any) -> str:
    """The record of an order with some of it replaced, as JSON."""
    return json.dumps({**json.loads(record_text(order)), **changes})


def statuses_of(state: State) -> tuple[str, str]:
    order_status, execution_status = STATUSES[state]
    return order_status.value, execution_status.value
