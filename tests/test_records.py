"""An order is read as it was written; what cannot be read, whoever wrote it, is refused and never guessed."""

import json
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copyrisk.decimals import parse_decimal
from copyrisk.errors import Refused
from copyrisk.orders import FINISHED, HOLDING_LOTS, STATUSES, State
from copyrisk.records import Order, Request, order_fields, read_order, record_text, result_fields
from copyrisk.terms import ExecutionStatus, Flow, OrderStatus, OrderType
from tests.order_twin import ACCOUNT, carried_out, foreign, order_in, spoiled, stored

NUMBERS = (
    "order_price",
    "order_quantity",
    "margin",
    "contract_value",
    "commission",
    "swap",
    "stop_loss",
    "take_profit",
)
NO_NUMBER = ["nan", "inf", "1e5", "1_000", "١", "-", "abc", " 1", "1\n", "9" * 19, "\N{SNOWMAN}", "x" * 1_000_000]

usd = st.decimals(-(10**9), 10**9, places=2)
paid = st.decimals(0, 10**9, places=2)
lots = st.decimals("0.01", 1000, places=2)
prices = st.decimals("0.00001", 10**6, places=5)
texts = st.text(max_size=20)
requests = st.builds(
    Request,
    st.from_regex(r"[a-z0-9]{1,33}", fullmatch=True),
    st.sampled_from(["open", "close", "place", "modify", "cancel"]),
    asked=lots,
    price=prices,
    sequence=st.integers(0, 10**9),
    filled=lots,
    profit=st.decimals(-(10**12), 10**12, places=8),
    is_final=st.booleans(),
)


@st.composite
def orders(draw: st.DrawFn) -> Order:
    state = draw(st.sampled_from(sorted(STATUSES)))
    holds, asked = state in HOLDING_LOTS, draw(lots)
    made = draw(st.lists(requests, max_size=4, unique_by=lambda request: request.id))
    whole = draw(paid)
    return Order(
        account=ACCOUNT,
        id="O1",
        symbol=draw(st.sampled_from(["EURUSD", "US30.cash", "A"]).map(str.upper)),
        order_type=draw(st.sampled_from(OrderType)),
        state=state,
        flow=draw(st.sampled_from([None, *Flow])),
        price=draw(prices),
        quantity=draw(lots),
        created_at=draw(texts),
        asked=asked,
        opened=draw(lots) if holds or state is State.CLOSED else Decimal(0),
        margin_usd=draw(paid) if holds else Decimal(0),
        whole_margin_usd=whole,
        contract_value=draw(st.decimals(0, 10**12, places=6)),
        commission_usd=draw(usd),
        swap_usd=draw(usd),
        stop_loss=draw(st.none() | prices),
        take_profit=draw(st.none() | prices),
        master_order_id=draw(st.sampled_from(["", "M1"])),
        net_profit_usd=draw(usd),
        paid_commission_usd=draw(usd),
        paid_swap_usd=draw(usd),
        close_price=draw(st.none() | prices),
        reason=draw(texts),
        body=draw(texts),
        attempts=draw(st.integers(0, 1000)),
        requests={request.id: request for request in made},
    )


@given(orders())
def test_an_order_is_read_as_it_was_written(order: Order) -> None:
    found = read_order(ACCOUNT, "O1", order_fields(order), record_text(order))
    expected = replace(order, quantity=order.opened) if order.state is State.CLOSED else order
    assert found == expected
    assert list(found.requests) == list(order.requests)
    assert read_order(ACCOUNT, "O1", order_fields(found), record_text(found)) == found


@given(orders())
def test_a_finished_order_is_read_from_our_record(order: Order) -> None:
    found = read_order(ACCOUNT, "O1", {}, record_text(order)) if order.state in FINISHED else None
    if found is not None:
        assert (order_fields(found), result_fields(found)) == (order_fields(order), result_fields(order))
        assert record_text(found) == record_text(order)
        assert found.state is order.state


@given(orders())
def test_what_is_written_is_of_the_grammar(order: Order) -> None:
    fields = order_fields(order)
    assert all(parse_decimal(fields[name]) is not None for name in NUMBERS if name in fields)
    assert fields["order_status"] in {*OrderStatus} and fields["execution_status"] in {*ExecutionStatus}
    assert all(parse_decimal(result_fields(order)[name]) is not None for name in ("net_profit", "commission", "swap"))


def test_nothing_stands_there() -> None:
    assert read_order(ACCOUNT, "O1", {}, None) is None


@pytest.mark.parametrize("state", [*sorted(HOLDING_LOTS), State.PENDING])
def test_a_finished_order_does_not_come_back(state: State) -> None:
    """Another service that comes late with its own "open" must not make it closable, and payable, a second time."""
    closed = order_in(State.CLOSED, net_profit_usd=Decimal(100))
    late = order_fields(order_in(state))
    found = read_order(ACCOUNT, "O1", late, record_text(closed))
    assert found is not None and found.state is State.CLOSED
    assert found.net_profit_usd == 100


@pytest.mark.parametrize("state", [State.OPENING, State.OPEN, State.CLOSING, State.PENDING])
def test_an_order_whose_hash_is_gone_is_not_forgotten(state: State) -> None:
    """As no order, its id could be opened again, and would ask the provider under request ids that were used."""
    order = order_in(state, Flow.PROVIDER)
    refused = refusal({}, record_text(order))
    assert refused == "order_unreadable"


# ---- orders of other services


def refusal(fields: Mapping[str, str], record: str | None = None) -> str:
    """The code of the refusal; `read` if it can be read."""
    try:
        read_order(ACCOUNT, "O1", fields, record)
    except Refused as refused:
        is_one_line = len(str(refused)) < 300 and str(refused).isprintable()
        return refused.code if is_one_line else f"no short line: {str(refused)[:300]!a}"
    return "read"


def test_an_order_of_another_service_needs_no_more_than_it_is_about() -> None:
    found = read_order(ACCOUNT, "O1", foreign(), None)
    assert found is not None
    assert (found.state, found.flow, found.opened, found.asked) == (State.OPEN, None, 1, 1)
    assert (found.commission_usd, found.swap_usd, found.margin_usd, found.attempts) == (0, 0, 0, 0)
    assert (found.stop_loss, found.take_profit, found.master_order_id) == (None, None, "")


@pytest.mark.parametrize(
    ("execution", "flow"),
    [
        ("", None),
        ("local", Flow.LOCAL),
        ("provider", Flow.PROVIDER),
        ("rock", Flow.LOCAL),
        ("barclays", Flow.PROVIDER),
        (" Rock ", Flow.LOCAL),
        ("BARCLAYS", Flow.PROVIDER),
        ("Local", Flow.LOCAL),
        ("\tPROVIDER\n", Flow.PROVIDER),
    ],
)
def test_a_flow_is_read_as_the_contract_reads_settings(execution: str, flow: Flow | None) -> None:
    found = read_order(ACCOUNT, "O1", foreign(execution=execution), None)
    assert found is not None and found.flow is flow


@pytest.mark.parametrize("absent", ["symbol", "order_type", "order_price", "order_quantity"])
def test_what_an_order_is_about_may_not_be_absent(absent: str) -> None:
    fields = foreign()
    del fields[absent]
    assert refusal(fields) == "order_unreadable"


@pytest.mark.parametrize(
    ("field", "bad"),
    [(field, NO_NUMBER) for field in NUMBERS]
    + [(field, ["", "0", "-1", "-0.01"]) for field in ("order_price", "order_quantity")]
    + [("symbol", ["", "eurusd", "EUR USD", "{", "A\n", "x" * 33]), ("order_type", ["", "buy", "LONG", "BUY\n"])]
    + [("execution", ["simulated", "0", "{rock}"]), ("order_status", ["open", "FILLED", "OPEN\n"])]
    + [("execution_status", ["executed", "FILLED", "REJECTED"])],
)
def test_a_field_that_cannot_be_read_makes_the_order_unreadable(field: str, bad: list[str]) -> None:
    found = {text: refusal(foreign(**{field: text})) for text in bad}
    assert set(found.values()) == {"order_unreadable"}, {text[:40]: code for text, code in found.items()}


@given(st.dictionaries(st.sampled_from(sorted(foreign() | dict.fromkeys(NUMBERS, ""))), st.text(max_size=25)))
def test_no_hash_makes_a_traceback(fields: dict[str, str]) -> None:
    assert refusal(foreign() | fields) in ("read", "order_unreadable")
    assert refusal(fields) in ("read", "order_unreadable")


@pytest.mark.parametrize("field", ["commission", "swap"])
def test_fractions_of_a_cent_are_another_services_own(field: str) -> None:
    """A step that books nothing must not change what will be booked."""
    order = read_order(ACCOUNT, "O1", foreign(**{field: "-0.125"}), None)
    assert order is not None
    after = stored(carried_out("stop_loss", order, stop_loss="1.05").order)
    assert getattr(after, f"{field}_usd") == Decimal("-0.125")


# ---- our own record, when somebody wrote into it

OPEN = order_in(State.CLOSING, Flow.PROVIDER)
CLOSED = order_in(State.CLOSED, Flow.PROVIDER)


@pytest.mark.parametrize(
    "record",
    [
        "{",
        "null",
        "[]",
        "{}",
        "0",
        "1",
        '""',
        '"x"',
        "[1]",
        "true",
        "NaN",
        '{"state"',
        '{"state":"open"}',
        "\x00",
        "é",
        "[" * 100000,
        '{"a":' * 100000,
        "1" * 5000,
        " ",
        "\n",
    ],
)
def test_a_record_that_is_no_record_is_refused(record: str) -> None:
    for order in (OPEN, CLOSED):
        fields = {} if order.state in FINISHED else order_fields(order)
        assert refusal(fields, record) == "order_unreadable"


SHAPES: list[Any] = [None, 1, -1, 1.5, True, "", "x", "nan", "1e5", "sNaN", "inf", [], ["x"], [[]], [[1]], {}, {"x": 1}]
NUMBERS_OF_RECORD = ("asked", "opened", "whole_margin", "net_profit", "paid_commission", "paid_swap")


@pytest.mark.parametrize("field", NUMBERS_OF_RECORD)
def test_a_number_of_a_record_is_of_the_grammar(field: str) -> None:
    for shape in SHAPES:
        assert refusal(order_fields(OPEN), spoiled(OPEN, **{field: shape})) == "order_unreadable", shape


@pytest.mark.parametrize(
    ("field", "fine"),
    [
        ("state", []),
        ("close_price", [None]),
        ("reason", ["", "x", "nan", "1e5", "sNaN", "inf"]),
        ("body", ["", "x", "nan", "1e5", "sNaN", "inf"]),
        ("attempts", [1, -1]),
        ("requests", [[]]),
    ],
)
def test_what_a_record_says_has_its_shape(field: str, fine: list[Any]) -> None:
    for shape in SHAPES:
        is_fine = any(shape == good and type(shape) is type(good) for good in fine)
        expected = "read" if is_fine else "order_unreadable"
        assert refusal(order_fields(OPEN), spoiled(OPEN, **{field: shape})) == expected, shape


@pytest.mark.parametrize("position", range(8))
def test_a_request_of_a_record_has_its_shape(position: int) -> None:
    good = json.loads(record_text(OPEN))["requests"]
    for shape in SHAPES:
        bad = [*good[0]]
        bad[position] = shape
        if (position >= 4 and shape == "1e5") or (position == 0 and isinstance(shape, str) and shape):
            continue  # results have more decimals than the grammar; another id is as good
        if type(shape) is type(good[0][position]) and position in (2, 3) and shape != -1:
            continue
        assert refusal(order_fields(OPEN), spoiled(OPEN, requests=[bad, good[1]])) == "order_unreadable", shape


def test_the_last_fields_of_a_finished_order_have_their_shape() -> None:
    for shape in [*SHAPES, {"symbol": 1}, order_fields(CLOSED) | {"order_price": 1}]:
        assert refusal({}, spoiled(CLOSED, last=shape)) == "order_unreadable", shape


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda of: st.lists(of) | st.dictionaries(texts, of),
    )
)
def test_no_record_makes_a_traceback(said: Any) -> None:
    for field in json.loads(record_text(CLOSED)):
        assert refusal({}, spoiled(CLOSED, **{field: said})) in ("read", "order_unreadable")
        assert refusal(order_fields(OPEN), spoiled(OPEN, **{field: said})) in ("read", "order_unreadable")


# ---- requests


def test_only_requests_that_ended_are_forgotten() -> None:
    """The opening is asked about as long as the order lives, and what is under way until it ends."""
    order = order_in(State.OPEN, Flow.PROVIDER)
    under_way = Request("m0", "modify")
    order = order.with_request(under_way)
    for n in range(100):
        order = order.with_request(Request(f"c{n}", "close", is_final=True))
    assert {"r1", "m0", "c99", "c90"} <= set(order.requests)
    assert len(order.requests) < 25
    assert order.request_of("open", "place") == order.requests["r1"]
    assert order.request_of("close") == order.requests["c99"]


def test_a_request_that_has_just_ended_is_remembered() -> None:
    """Its report may come a second time, whatever ended before it."""
    order = order_in(State.OPEN, Flow.PROVIDER).with_request(Request("m0", "modify"))
    for n in range(100):
        order = order.with_request(Request(f"c{n}", "close", is_final=True))
    assert "m0" in order.with_request(Request("m0", "modify", is_final=True)).requests
