"""Templates: filled in they are what would have been packed; a copy from one is the order of the usual way."""

import re
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from typing import Any

import hiredis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from copyrisk._templates import Template
from copyrisk.commands import Command, CommandType
from copyrisk.copying import CopySettings
from copyrisk.decimals import decimal_text
from copyrisk.derived import copy_id
from copyrisk.errors import CopyriskError
from copyrisk.execution import decide
from copyrisk.forms import Form, Forms
from copyrisk.identifiers import Account
from copyrisk.market import InstrumentKey
from copyrisk.orders import Event, State
from copyrisk.records import record_text
from copyrisk.replication import MasterEvent
from copyrisk.situation import Outcome, Situation
from copyrisk.store.changes import Cause, change_of, next_version
from copyrisk.store.copies import CopyColumns
from copyrisk.store.effects import Effects, Waiting
from copyrisk.store.filler import Filler
from copyrisk.store.functions import AccountRead, hold_request
from copyrisk.store.markets import Markets
from copyrisk.store.pipe import Pipe, pack
from copyrisk.terms import AccountType, OrderType
from tests.trading import Desk

# ---- filling in

NAMES = ("@a@", "@ab@", "@b_@")
PLACES = {name: place for place, name in enumerate(NAMES)}
_BLANK = re.compile("|".join(NAMES).encode())
_PLAIN = st.one_of(st.binary(max_size=12), st.sampled_from([b"@", b"@@", b"@a", b"a@", b"\r\n", b"$1\r\n", b"@c@"]))
_WORD = st.lists(st.one_of(_PLAIN, st.sampled_from([name.encode() for name in NAMES])), max_size=6).map(b"".join)
_COMMANDS = st.lists(st.lists(_WORD, min_size=1, max_size=5), max_size=4)
_TEXT = st.one_of(st.binary(max_size=9), st.sampled_from([b"@a@", b"\r\n", b"x" * 99, b"y" * 1000]))


def packed(commands: list[list[bytes]]) -> bytes:
    return b"".join(pack(*words) for words in commands)


def filled_slowly(commands: list[list[bytes]], row: list[bytes]) -> bytes:
    """The twin: blanks replaced in the words, then packed."""
    return packed(
        [[_BLANK.sub(lambda found: row[PLACES[found.group().decode()]], word) for word in words] for words in commands]
    )


@given(_COMMANDS, st.lists(st.tuples(_TEXT, _TEXT, _TEXT), max_size=5), st.data())
def test_what_is_filled_in_is_what_would_have_been_packed(
    commands: list[list[bytes]], rows: list[tuple[bytes, bytes, bytes]], data: Any
) -> None:
    template = Template(packed(commands), PLACES)
    assert template.commands == len(commands)
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.integers(start, len(rows)))
    columns: list[Any] = [[row[place] for row in rows] for place in range(3)]
    expected = b"".join(filled_slowly(commands, list(row)) for row in rows[start:stop])
    assert template.fill(columns, start, stop) == expected
    if rows:  # one text for all rows
        columns[1] = rows[0][1]
        same = [[row[0], rows[0][1], row[2]] for row in rows]
        expected = b"".join(filled_slowly(commands, row) for row in same[start:stop])
        assert template.fill(columns, start, stop) == expected


def test_sizes_of_words_with_blanks_are_right_around_every_power_of_ten() -> None:
    template = Template(pack("SET", "k", "<@a@>"), {"@a@": 0})
    for size in (0, 6, 7, 8, 96, 97, 98, 996, 997, 998, 99_997, 99_998):
        text = b"z" * size
        assert template.fill([[text]], 0, 1) == pack("SET", "k", b"<" + text + b">")


@given(_COMMANDS.filter(bool), st.data())
def test_commands_that_are_cut_are_refused(commands: list[list[bytes]], data: Any) -> None:
    whole = packed(commands)
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    ends = {len(packed(commands[:count])) for count in range(len(commands) + 1)}
    if len(cut) in ends:
        Template(cut, PLACES)
        return
    with pytest.raises(ValueError, match="whole commands"):
        Template(cut, PLACES)


MALFORMED = (
    *(
        b"PING\r\n",
        b"$1\r\na\r\n",
        b"*-1\r\n",
        b"*1\r\n$-1\r\n",
        b"*1\r\n:1\r\n",
        b"*1\r\n+OK\r\n",
        b"*x\r\n",
        b" *0\r\n",
    ),
    *(
        b"*1\r\n$99999999999999999999\r\na\r\n",
        b"*99999999999\r\n$1\r\na\r\n",
        b"*1\r\n*1\r\n$1\r\na\r\n",
        b"*2\r\n$1\r\na\r\n",
    ),
    *(
        b"*",
        b"*1",
        b"*1\r",
        b"*1\r\n$",
        b"*1\r\n$1",
        b"*1\r\n$1\r",
        b"*1\r\n$1\r\n",
        b"*1\r\n$1\r\na",
        b"*1\r\n$1\r\na\r",
    ),
)
#: What looks like lines and is none; a reader of the protocol would wait for more, or give up.
LINES = (
    b"*1\rX",
    b"*1\rX\n$1\r\na\r\n",
    b"*\r\n",
    b"*1\r\n$1\rX",
    b"*1\r\n$\r\n\r\n",
    b"*1\r\n$1\r\naXX",
    b"*1\r\n$3\r\n@a@XX",
)


@pytest.mark.parametrize("said", MALFORMED)
def test_what_is_no_command_is_refused(said: bytes) -> None:
    with pytest.raises(ValueError, match="whole commands"):
        Template(said, PLACES)


@pytest.mark.parametrize("said", LINES)
def test_a_line_ends_as_lines_do(said: bytes) -> None:
    """In a process of its own: it must not be killed by it."""
    code = (
        "from copyrisk._templates import Template\n"
        f"try: Template({said!r}, {{'@a@': 0}})\n"
        "except ValueError as refused: print(refused)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout[-15:-1]) == (0, b"whole commands")


@pytest.mark.parametrize(
    "places",
    [{"@a@": 1}, {"@a@": 0, "@b@": 0}, {"@a@": 0, "@b@": 2}, {"@a@": -1}, {f"@{i}@": i for i in range(33)}],
)
def test_places_must_be_each_once(places: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="places"):
        Template(b"", places)


def test_as_many_blanks_as_there_may_be() -> None:
    places = {f"@{i}@": i for i in range(32)}
    template = Template(pack(*places), places)
    texts = [b"%d" % i for i in range(32)]
    assert template.fill([[text] for text in texts], 0, 1) == pack(*texts)


@pytest.mark.parametrize(
    ("columns", "stop", "error"),
    [
        ([[b"x"]], 1, ValueError),
        ([[b"x"], [b"y"], [b"z"], [b"z"]], 1, ValueError),
        ([[b"x"], [b"y"], []], 1, ValueError),
        ([[b"x"], [b"y"], [b"z"]], 2, ValueError),
        ([[b"x"], ["y"], [b"z"]], 1, TypeError),
        ([[b"x"], [None], [b"z"]], 1, TypeError),
        ([[b"x"], bytearray(b"y"), [b"z"]], 1, TypeError),
        ([[b"x"], (b"y",), [b"z"]], 1, TypeError),
        ([b"x", b"y", 5], 1, TypeError),
        (5, 1, TypeError),
    ],
)
def test_columns_that_do_not_fit_are_refused(columns: Any, stop: int, error: type[Exception]) -> None:
    template = Template(pack("@a@", "@ab@", "@b_@"), PLACES)
    with pytest.raises(error):
        template.fill(columns, 0, stop)


def test_a_template_that_was_refused_leaves_nothing_and_a_used_one_can_be_used_again() -> None:
    template = Template(pack("GET", "@a@"), {"@a@": 0})
    for _ in range(3):
        with pytest.raises(TypeError):
            template.fill([[b"1", None]], 0, 2)  # type: ignore[list-item]
        assert template.fill([[b"1", b"22"]], 0, 2) == pack("GET", "1") + pack("GET", "22")
    assert template.fill([[]], 0, 0) == b""


# ---- the law of a copy: a template, filled in, says what the usual way says

MASTER = Account(AccountType.MASTER, "M")
_RELAXED = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
_REVERSED = {
    "BUY": "SELL",
    "SELL": "BUY",
    "BUY_LIMIT": "SELL_STOP",
    "SELL_LIMIT": "BUY_STOP",
    "BUY_STOP": "SELL_LIMIT",
    "SELL_STOP": "BUY_LIMIT",
}
_LEVEL = st.sampled_from([None, "1.05", "1.0845", "1.08455", "1.12", "0.5"])
_CENTS = st.integers(1, 10**9).map(lambda cents: Decimal(cents).scaleb(-2))
_FOLLOWERS = st.lists(
    st.tuples(
        st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
        st.integers(1, 10_000).map(lambda steps: Decimal(decimal_text(Decimal(steps).scaleb(-2)))),
        _CENTS,
        st.sampled_from(["", "1", "1795272122383", "x", "007"]),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda follower: follower[0],
)
_TERMS = st.fixed_dictionaries(
    {
        "spread": st.sampled_from(["0", "12"]),
        "spread_pip": st.just("0.00001"),
        "contract_size": st.sampled_from(["100000", "12.5"]),
    },
    optional={
        "commission_rate": st.sampled_from(["0", "3.5", "0.333"]),
        "commission_type": st.sampled_from(["both", "in", "out"]),
        "commission_value_type": st.sampled_from(["per_lot", "percent"]),
    },
)


class Copier:
    """Makes the same copies both ways."""

    def __init__(self, desk: Desk, *, keeps_history: bool) -> None:
        pipe, chosen = Pipe(desk.new_client()), desk.settings
        self.markets = Markets(pipe, Filler(pipe, None), chosen.rules(), chosen.hours(), chosen.lots())
        self.effects = Effects(pipe, events_limit=1_000, keeps_history=keeps_history)

    def form(self, event: MasterEvent, own: CopySettings, *, reverse: bool) -> Form | str:
        forms = Forms(event, self.markets, self.effects)
        forms.read(["Standard"], anew=True)
        return forms.of("Standard", own, reverse=reverse)

    def usual(self, event: MasterEvent, account: Account, lots: Decimal, flow: str, *, reverse: bool) -> Outcome | str:
        """What a command of the follower's own comes to, but for its margin; or the code of its refusal."""
        levels = (event.take_profit, event.stop_loss) if reverse else (event.stop_loss, event.take_profit)
        order_type = OrderType(_REVERSED[event.order_type] if reverse else event.order_type)
        is_pending = "_" in order_type
        command = Command(
            id=event.entry_id,
            type=CommandType.PENDING if is_pending else CommandType.OPEN,
            account=account,
            order_id=copy_id(event.order_id, account),
            key="",
            client_key="",
            body="",
            symbol=event.symbol,
            order_type=order_type,
            quantity=lots,
            price=event.price if is_pending else None,
            stop_loss=levels[0],
            take_profit=levels[1],
            master_order_id=event.order_id,
        )
        market = self.markets.of(self.markets.market.ensure_instrument(InstrumentKey("Standard", event.symbol)))
        there = Situation(account, self.markets.now_ms, Decimal(1), flow, True, None, market, 0)
        try:
            outcome = decide(command, there)
        except CopyriskError as refusal:
            return refusal.code
        assert isinstance(outcome, Outcome)
        return outcome


def commands_of(sent: bytes) -> list[list[bytes]]:
    reader, found = hiredis.Reader(), []
    reader.feed(sent)
    while (command := reader.gets()) is not False:
        found.append(command)
    return found


def an_event(order_type: str, price: str, stop_loss: str | None, take_profit: str | None) -> MasterEvent:
    return MasterEvent(
        entry_id="1795272122383-7",
        master=MASTER,
        order_id="MO1",
        version=5,
        change=Event.OPENED,
        state=State.OPEN,
        symbol="EURUSD",
        order_type=OrderType(order_type),
        price=Decimal(price),
        asked=Decimal("1.5"),
        quantity=Decimal("1.5"),
        stop_loss=None if stop_loss is None else Decimal(stop_loss),
        take_profit=None if take_profit is None else Decimal(take_profit),
        ts_ms=1795272122383,
    )


@pytest.fixture
def desk(bundled_server: Any) -> Desk:
    return Desk(bundled_server)


@given(
    order_type=st.sampled_from(list(_REVERSED)),
    price=st.sampled_from(["1.05", "1.0845", "1.08455", "1.12"]),
    levels=st.tuples(_LEVEL, _LEVEL),
    followers=_FOLLOWERS,
    terms=_TERMS,
    flow=st.sampled_from(["rock", "barclays", "", " Rock "]),
    reverse=st.booleans(),
    keeps_history=st.booleans(),
)
@_RELAXED
def test_a_copy_is_the_order_that_the_usual_way_makes(
    desk: Desk,
    order_type: str,
    price: str,
    levels: tuple[str | None, str | None],
    followers: list[tuple[str, Decimal, Decimal, str]],
    terms: dict[str, str],
    flow: str,
    reverse: bool,
    keeps_history: bool,
) -> None:
    desk.client.delete("groups:{Standard}:EURUSD")
    desk.office.group("EURUSD", min_lot="0.01", max_lot="100", lot_step="0.01", **terms)
    desk.quote()
    copier = Copier(desk, keeps_history=keeps_history)
    event = an_event(order_type, price, *levels)
    form = copier.form(event, CopySettings(copy_status="active", sending_orders=flow), reverse=reverse)
    accounts = [Account(AccountType.FOLLOWER, name) for name, *_ in followers]
    usual = [
        copier.usual(event, account, lots, flow, reverse=reverse)
        for account, (_, lots, _, _) in zip(accounts, followers, strict=True)
    ]
    if isinstance(form, str):
        assert set(usual) == {form}
        return
    now_ms = copier.markets.now_ms
    columns = columns_of(form, accounts, followers, now_ms)
    copies = commands_of(form.requests.copies(columns, 0, len(accounts)))
    effects, count = form.requests.effects(columns, range(len(accounts)))
    *others, holding = commands_of(effects)
    assert count == len(others) + 1
    wanted: list[list[bytes]] = []
    for i, (account, outcome) in enumerate(zip(accounts, usual, strict=True)):
        assert isinstance(outcome, Outcome)
        _, _, margin, version = followers[i]
        read = AccountRead(account, now_ms, version, "", "", 0, {}, (), (), (), {}, "", "")
        charged = outcome.with_margin(margin)
        change = change_of(read, charged, Cause(event.entry_id, "copy"))
        assert columns.new_versions[i] == change.version
        assert_the_call(copies[i], columns, i, charged, change.order)
        follows = {name: said for name, said in change.follows.items() if name != "holds"}
        assert change.follows["holds"]
        wanted += [
            command for one in copier.effects.requests(Waiting(account, b"", follows)) for command in commands_of(one)
        ]
    assert others == wanted
    held = dict(zip(accounts, columns.new_versions, strict=True))
    assert [holding] == commands_of(hold_request("EURUSD", held, holds=True))  # type: ignore[arg-type]


def columns_of(
    form: Form, accounts: list[Account], followers: list[tuple[str, Decimal, Decimal, str]], now_ms: int
) -> CopyColumns:
    ids = [copy_id("MO1", account).encode() for account in accounts]
    names = [name.encode() for name, *_ in followers]
    return CopyColumns(
        followers=names,
        order_ids=ids,
        request_ids=form.requests.request_ids(names, ids),
        deadline=b"1795272122999",
        versions=[version.encode() for *_, version in followers],
        new_versions=[next_version(version, now_ms) for *_, version in followers],
        balances=[b"%d.25" % i for i in range(len(ids))],
        leverages=[b"100.0"] * len(ids),
        counts=[b"%d" % i for i in range(len(ids))],
        amounts=[form.amounts(Decimal("0.01"), int(lots * 100)) for _, lots, _, _ in followers],
        margins=[f"{margin:.2f}".encode() for _, _, margin, _ in followers],
        margin_cents=[int(margin * 100) for _, _, margin, _ in followers],
        remainders=[b"", b"0.25", b"-0.5", b"1"][: len(ids)],
    )


def assert_the_call(call: list[bytes], columns: CopyColumns, i: int, outcome: Outcome, order: Any) -> None:
    """The words of one `copyrisk_copy`: where, on what it rests, and then what `copyrisk_change` would write."""
    tag, own = f"copy_follower:{columns.followers[i].decode()}", columns.order_ids[i].decode()
    named = (f"user:{{{tag}}}:config", f"user_orders_index:{{{tag}}}", f"copyrisk:{{{tag}}}:ledger")
    own_keys = (f"user_holdings:{{{tag}}}:{own}", f"copyrisk:{{{tag}}}:order:{own}")
    assert call[:3] == [b"FCALL", b"copyrisk_copy_v1", b"6"]
    assert call[3:9] == [key.encode() for key in (*named, *own_keys, f"copyrisk:{{{tag}}}:remainders")]
    rests_on = [columns.deadline, columns.versions[i], columns.balances[i], columns.leverages[i]]
    standing = [*rests_on, b"Standard", b"active", columns.counts[i]]
    assert call[9:18] == [own.encode(), *standing, b"%d" % columns.new_versions[i]]
    made = replace(outcome.order, made_version=columns.new_versions[i])
    assert call[18].decode() == record_text(made)
    assert call[19] == columns.remainders[i : i + 1][0]
    assert call[20:] == [word.encode() for item in order.items() for word in item]
