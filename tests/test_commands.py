"""What arrives on the streams: each bad field has its code, and ids and digests follow from their cause alone."""

import subprocess
import sys
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copyrisk import identifiers
from copyrisk.commands import PLACING, CommandType, Kind, Trigger, derived_id, kind_of_command, parse_command
from copyrisk.errors import InvalidId, Refused
from copyrisk.execution import decide
from copyrisk.provider_reports import Report, ReportStatus, kind_of_report, parse_report
from copyrisk.situation import Outcome
from tests.order_twin import situation

WHOSE = {"user_type": "live", "user_id": "1001"}
#: One well-formed command of each type.
COMMANDS: dict[str, dict[str, str]] = {
    "open": {"symbol": "EURUSD", "order_type": "BUY", "order_quantity": "0.29", "stop_loss": "1.05"},
    "pending": {"symbol": "EURUSD", "order_type": "SELL_STOP", "order_quantity": "1", "order_price": "1.07"},
    "modify": {"order_id": "O1", "order_price": "1.06"},
    "cancel": {"order_id": "O1"},
    "close": {"order_id": "O1", "order_quantity": "0.5"},
    "stop_loss": {"order_id": "O1", "stop_loss": "1.05"},
    "take_profit": {"order_id": "O1", "take_profit": "1.15"},
    "trigger": {"order_id": "O1", "trigger": "stop_loss", "trigger_price": "1.05"},
}
NO_NUMBER = ["nan", "inf", "-inf", "1e5", "1_000", "١٢", "１", "+1", " 1", "1\n", "1,5", ".5", "5.", "0x1", "9" * 19]
NOT_ABOVE_0 = ["0", "-1", "0.000", "-0", "-0.01"]
NO_ID = ["{", "a}b", "a b", "a\n", "\n", "é", "a:b", "x" * 65, "a\0", "*", "x" * 1_000_000]
NO_WORD = ["", "nothing", "Nothing ", "\N{SNOWMAN}", "\n", "x" * 1_000_000]


def command(kind: str, entry_id: str = "1-1", **fields: str | None) -> Any:
    said = WHOSE | {"type": kind} | COMMANDS.get(kind, {}) | fields
    return parse_command(entry_id, {name: text for name, text in said.items() if text is not None})


def refusal(kind: str, **fields: str | None) -> str:
    with pytest.raises((Refused, InvalidId)) as refused:
        command(kind, **fields)
    assert len(str(refused.value)) < 300 and str(refused.value).isascii() and str(refused.value).isprintable()
    return refused.value.code


#: Type of command, its field, what it may not be, code.
BAD: list[tuple[str, str, list[Any], str]] = [
    ("open", "type", [None, *NO_WORD, "OPEN", "open "], "unknown_command"),
    ("open", "user_type", [None, *NO_WORD, "Live", "admin"], "invalid_user_type"),
    ("open", "user_id", [None, "", *NO_ID], "invalid_account_id"),
    ("open", "order_id", NO_ID, "invalid_order_id"),
    ("open", "symbol", [None, "", *NO_ID, "eurusd", "x" * 33, "#A"], "invalid_symbol"),
    ("open", "order_type", [None, *NO_WORD, "buy", "BUY_LIMIT"], "invalid_order_type"),
    ("open", "order_quantity", [None, "", *NO_NUMBER, *NOT_ABOVE_0], "invalid_order_quantity"),
    ("open", "stop_loss", NO_NUMBER + NOT_ABOVE_0, "invalid_stop_loss"),
    ("open", "take_profit", NO_NUMBER + NOT_ABOVE_0, "invalid_take_profit"),
    ("open", "master_order_id", NO_ID, "invalid_order_id"),
    (
        "open",
        "sending_orders",
        ["", " ", "rocks", "rock,barclays", "r\N{CYRILLIC SMALL LETTER O}ck", "0", *NO_WORD],
        "invalid_sending_orders",
    ),
    ("pending", "sending_orders", ["", "local", "ba rclays"], "invalid_sending_orders"),
    ("open", "idempotency_key", ["a b", "{", "a\n", "é", "x" * 129, "x" * 1_000_000], "invalid_idempotency_key"),
    ("pending", "order_type", [None, *NO_WORD, "BUY", "SELL"], "invalid_order_type"),
    ("pending", "order_price", [None, "", *NO_NUMBER, *NOT_ABOVE_0], "invalid_order_price"),
    ("modify", "order_price", [None, "", *NO_NUMBER, *NOT_ABOVE_0], "invalid_order_price"),
    ("close", "order_quantity", NO_NUMBER + NOT_ABOVE_0, "invalid_order_quantity"),
    ("stop_loss", "stop_loss", NO_NUMBER + NOT_ABOVE_0, "invalid_stop_loss"),
    ("take_profit", "take_profit", NO_NUMBER + NOT_ABOVE_0, "invalid_take_profit"),
    ("trigger", "trigger", [None, *NO_WORD], "invalid_trigger"),
    ("trigger", "trigger_price", [None, "", *NO_NUMBER, *NOT_ABOVE_0], "invalid_trigger_price"),
] + [
    (kind, "order_id", [None, "", *NO_ID], "invalid_order_id")
    for kind in ("modify", "cancel", "close", "stop_loss", "take_profit", "trigger")
]


@pytest.mark.parametrize(("kind", "field", "bad", "code"), BAD, ids=lambda value: value if type(value) is str else "")
def test_a_bad_field_is_refused_with_its_code(kind: str, field: str, bad: list[str | None], code: str) -> None:
    found = {text: refusal("none" if field == "type" else kind, **{field: text}) for text in bad}
    assert set(found.values()) == {code}


def test_the_codes_are_documented() -> None:
    documented = (parse_command.__doc__ or "").replace("\n", " ")
    assert not [code for *_, code in BAD if f"`{code}`" not in documented]


@given(
    st.dictionaries(
        st.sampled_from(sorted({f for c in COMMANDS.values() for f in c} | {"type"})), st.text(), max_size=9
    )
)
def test_no_text_makes_a_traceback(fields: dict[str, str]) -> None:
    codes: set[str] = set()
    for kind, good in COMMANDS.items():
        try:
            parse_command("1-1", {"type": kind} | WHOSE | good | fields)
        except (Refused, InvalidId) as refused:
            codes.add(refused.code)
    assert codes <= {code for *_, code in BAD}


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_good_command_says_what_it_said(kind: str) -> None:
    found = command(kind)
    said = COMMANDS[kind]
    assert (found.type, str(found.account), found.id) == (kind, "live:1001", "1-1")
    assert found.order_id == said.get("order_id", found.order_id)
    assert found.symbol == said.get("symbol", "")
    assert found.quantity == (Decimal(said["order_quantity"]) if "order_quantity" in said else None)
    price = next((said[n] for n in ("order_price", "trigger_price", kind) if n in said), None)
    assert found.price == (Decimal(price) if price else None)


def test_the_price_of_a_market_order_is_ignored() -> None:
    assert command("open", order_price="nan").price is None


@pytest.mark.parametrize("kind", sorted(PLACING))
@pytest.mark.parametrize(("said", "flow"), [(None, None), ("rock", "rock"), (" BARCLAYS\n", "barclays")])
def test_an_order_may_say_which_way_it_goes(kind: str, said: str | None, flow: str | None) -> None:
    assert command(kind, sending_orders=said).sending_orders == flow


@pytest.mark.parametrize(
    ("user_type", "own", "said", "flow"),
    [
        *[(kind, "rock", "barclays", "provider") for kind in ("live", "strategy_provider", "copy_follower")],
        *[(kind, "barclays", "rock", "local") for kind in ("live", "strategy_provider", "copy_follower", "demo")],
        ("demo", "rock", "barclays", "local"),
        ("live", "nonsense", "rock", "local"),
        ("live", None, "barclays", "provider"),
        ("strategy_provider", "rock", None, "local"),
    ],
)
@pytest.mark.parametrize("kind", sorted(PLACING))
def test_what_an_order_says_goes_before_what_its_account_has(
    kind: str, user_type: str, own: str | None, said: str | None, flow: str
) -> None:
    asked = command(kind, user_type=user_type, sending_orders=said, order_price="1.07", stop_loss=None)
    account = situation(account=asked.account, sending_orders=own)
    outcome = decide(asked, account)
    assert isinstance(outcome, Outcome) and outcome.order.flow == flow


@pytest.mark.parametrize("kind", ["modify", "close", "cancel", "stop_loss", "trigger"])
def test_only_a_new_order_chooses_its_way(kind: str) -> None:
    assert command(kind, sending_orders="nothing").sending_orders is None


@pytest.mark.parametrize("kind", ["stop_loss", "take_profit"])
def test_a_level_without_price_is_to_be_cancelled(kind: str) -> None:
    assert command(kind, **{kind: None}).price is None


@pytest.mark.parametrize(
    ("kind", "field"), [("stop_loss", "stop_loss"), ("take_profit", "take_profit"), ("close", "order_quantity")]
)
def test_what_would_mean_all_or_none_if_it_were_absent_is_not_left_empty(kind: str, field: str) -> None:
    with pytest.raises(Refused) as refusal:
        command(kind, **{field: ""})
    assert refusal.value.code == f"invalid_{field}"


def test_a_margin_check_has_no_price() -> None:
    assert command("trigger", trigger="margin", trigger_price=None).trigger is Trigger.MARGIN


# ---- digests and ids


@given(st.permutations(sorted(WHOSE | COMMANDS["open"])), st.sampled_from([None, "k1", "k2"]))
def test_the_digest_knows_neither_order_nor_key(names: list[str], key: str | None) -> None:
    said = WHOSE | COMMANDS["open"]
    fields = {"type": "open"} | {name: said[name] for name in names} | ({"idempotency_key": key} if key else {})
    assert parse_command("7-7", fields).body == command("open").body


@pytest.mark.parametrize("field", ["symbol", "order_type", "order_quantity", "stop_loss", "user_id"])
def test_the_digest_knows_everything_else(field: str) -> None:
    other = {"symbol": "GBPUSD", "order_type": "SELL", "order_quantity": "0.30", "stop_loss": "1.06", "user_id": "2"}
    assert command("open", **{field: other[field]}).body != command("open").body


@pytest.mark.parametrize("kind", sorted(PLACING))
def test_the_id_of_a_new_order_follows_from_its_cause(kind: str) -> None:
    def id_of(*args: str, **fields: str) -> str:
        return str(command(kind, *args, **fields).order_id)

    assert id_of(idempotency_key="k") == id_of("2-2", idempotency_key="k", order_quantity="9")
    assert id_of(order_id="mine") == "mine" == id_of(order_id="mine", idempotency_key="k")
    causes = [id_of(), id_of("1-2"), id_of("11-2"), id_of(idempotency_key="k"), id_of(idempotency_key="k2")]
    causes += [id_of(idempotency_key="1-1"), id_of(idempotency_key="entry:1-1"), id_of(user_id="1002")]
    causes += [id_of(user_type="demo"), id_of(user_type="demo", idempotency_key="k")]
    assert len(set(causes)) == len(causes)
    assert all(identifiers.check_order_id(order_id) for order_id in causes)


def test_no_two_causes_answer_under_one_key() -> None:
    """Without a client's key an order id is one order; any other command is a cause of its own."""
    answers = [command("open", order_id="a"), command("open", order_id="b"), command("open", idempotency_key="order:a")]
    answers += [
        command("open"),
        command("close"),
        command("close", "1-2"),
        command("close", idempotency_key="entry:1-2"),
    ]
    found = [answered.key for answered in answers]
    assert found[3] == found[4]  # of one entry, there is only one command
    assert len(set(found)) == len(found) - 1
    assert command("open", "1-1", order_id="a").key == command("open", "2-2", order_id="a").key


def test_derived_ids_do_not_collide() -> None:
    accounts = [f"{kind}:{n}" for kind in ("live", "demo") for n in range(50)]
    made = {derived_id("o", of, f"O{n}", str(k)) for of in accounts for n in range(100) for k in range(10)}
    assert len(made) == 100_000
    assert identifiers.are_order_ids(_cells(made)).all()


def _cells(ids: set[str]) -> Any:
    import numpy as np

    cells = np.zeros((len(ids), 65), np.uint8)
    for row, made in zip(cells, ids, strict=True):
        row[0], row[1 : 1 + len(made)] = len(made), np.frombuffer(made.encode(), np.uint8)
    return cells


def test_ids_and_digests_are_the_same_in_every_process() -> None:
    """Hashes of texts differ from process to process; these must not, nor from one version to the next."""
    said = WHOSE | {"type": "open"} | COMMANDS["open"]
    code = (
        "from copyrisk.commands import parse_command\n"
        "from copyrisk.derived import derived_id\n"
        f"print(derived_id('o', 'live:1001', 'O1', '1'), parse_command('1-1', {said!r}).body)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    here = [derived_id("o", "live:1001", "O1", "1"), command("open").body]
    assert ran.stdout.split() == here == ["o057c8a62ba336e6d7baa7ef0e69d758d", "75bf1ba3423fc423a6d0860195ad9d83"]


# ---- whose work it is


@pytest.mark.parametrize(
    ("kind", "trigger", "whose"),
    [
        ("open", None, Kind.OPEN),
        ("pending", None, Kind.PENDING),
        ("modify", None, Kind.PENDING),
        ("cancel", None, Kind.CANCEL),
        ("close", None, Kind.CLOSE),
        ("stop_loss", None, Kind.STOP_LOSS),
        ("take_profit", None, Kind.TAKE_PROFIT),
        ("trigger", "pending", Kind.PENDING),
        ("trigger", "margin", Kind.PENDING),
        ("trigger", "stop_loss", Kind.STOP_LOSS),
        ("trigger", "take_profit", Kind.TAKE_PROFIT),
    ],
)
def test_whose_work_a_command_is(kind: str, trigger: str | None, whose: Kind) -> None:
    assert kind_of_command(command(kind, **({"trigger": trigger} if trigger else {}))) is whose
    assert kind in {member.value for member in CommandType}


# ---- reports

REPORT = WHOSE | {"request_id": "r1", "order_id": "O1", "action": "open", "status": "partial", "sequence": "3"}
REPORT |= {"filled_quantity": "0.29", "average_price": "1.0845", "reason": "none"}


def report(**fields: str | None) -> Report:
    return parse_report({name: text for name, text in (REPORT | fields).items() if text is not None})


@pytest.mark.parametrize(
    ("field", "bad", "code"),
    [
        ("status", [None, *NO_WORD, "FILLED", "new"], "report_invalid"),
        (
            "sequence",
            [None, "", "0", "-1", "1.0", "1" * 10, "٣", "²", "1e5", "1_0", " 1", "1\n", "nan"],
            "report_invalid",
        ),
        ("filled_quantity", [None, "", "0", "-1", *NO_NUMBER], "report_invalid"),
        ("average_price", [None, "", "0", "-1", "0.00", *NO_NUMBER], "report_invalid"),
        ("request_id", [None, "", *NO_ID], "invalid_order_id"),
        ("order_id", [None, "", *NO_ID], "invalid_order_id"),
        ("user_type", [None, *NO_WORD], "invalid_user_type"),
        ("user_id", [None, "", *NO_ID], "invalid_account_id"),
    ],
)
def test_a_report_that_makes_no_sense_has_a_code(field: str, bad: list[str | None], code: str) -> None:
    for text in bad:
        with pytest.raises((Refused, InvalidId)) as refused:
            report(**{field: text})
        assert refused.value.code == code, text
        assert len(str(refused.value)) < 300 and str(refused.value).isascii() and str(refused.value).isprintable()


@pytest.mark.parametrize("status", ["accepted", "rejected", "cancelled"])
def test_what_filled_nothing_needs_no_price(status: str) -> None:
    found = report(status=status, filled_quantity=None, average_price=None)
    assert (found.filled, found.average_price) == (0, 0)
    assert report(status=status, filled_quantity="0", average_price="1.1").average_price == 0


@given(st.dictionaries(st.sampled_from(sorted(REPORT)), st.text(max_size=30), max_size=9))
def test_no_report_makes_a_traceback(fields: dict[str, str]) -> None:
    try:
        found = parse_report(REPORT | fields)
    except (Refused, InvalidId):
        return
    assert found.filled >= 0 and found.sequence > 0 and len(found.reason) <= 200
    assert (found.average_price > 0) == (found.filled > 0)


def test_a_reason_is_cut_short() -> None:
    assert len(report(reason="x" * 1_000_000).reason) == 200


@pytest.mark.parametrize(
    ("action", "status", "whose"),
    [
        ("open", "filled", Kind.OPEN),
        ("close", "partial", Kind.CLOSE),
        ("cancel", "accepted", Kind.CANCEL),
        ("place", "filled", Kind.PENDING),
        ("modify", "accepted", Kind.PENDING),
        ("whatever", "accepted", Kind.PENDING),
        *[(action, "rejected", Kind.REJECT) for action in ("open", "close", "cancel", "place", "modify")],
    ],
)
def test_whose_work_a_report_is(action: str, status: str, whose: Kind) -> None:
    assert kind_of_report(report(action=action, status=status)) is whose
    assert ReportStatus(status)
