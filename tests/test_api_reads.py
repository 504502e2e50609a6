"""What can be read over HTTP: figures, orders, answers, decisions, cascades, the audit trail; of one's own accounts."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copyrisk.api.app import make_app
from copyrisk.api.copying import copying_routes
from copyrisk.api.copying_models import FollowerPage, Relationship, RelationshipCheck, RelationshipPage
from copyrisk.api.documents import Shape
from copyrisk.api.freshness import Ticks, judge_portfolio
from copyrisk.api.reading import reading_routes
from copyrisk.api.reading_models import KeyAnswer, OneOrder, OrderPage, Portfolio
from copyrisk.api.report_models import CascadeList, CascadePage, DecisionPage, HistoryPage, TrailPage
from copyrisk.api.reports import report_routes
from copyrisk.audit import AuditKind, Entry
from copyrisk.following import SETTING_NAMES
from copyrisk.store import trail_search
from copyrisk.store.pipe import Pipe
from copyrisk.store.relation_views import PORTFOLIO_FIELDS
from copyrisk.store.trail import Trail
from tests.api_house import Caller, House, data, opened, refusal, served_to_all
from tests.backoffice import now_ms
from tests.cascade_desk import EVENT, SAID, CascadeDesk
from tests.trading import Desk

F0, M = "copy_follower:F0", "strategy_provider:M"
_STATES = ("live", "stale", "unavailable")
_WORDS = st.sampled_from(["ok", "degraded", "error", "", "9", "9", "9", "0", "-1.5", "nan", "1e5"])
FIGURES = (
    *("equity", "balance", "free_margin", "used_margin", "used_margin_executed", "used_margin_all"),
    *("margin_level", "open_pnl", "total_pl"),
)


@pytest.fixture(scope="module")
def _one_house(_one_bundled_server: Any) -> Iterator[House]:
    with served_to_all(_one_bundled_server) as made:
        yield made


@pytest.fixture
def desk(bundled_server: Any) -> Iterator[CascadeDesk]:
    with opened(CascadeDesk, bundled_server) as made:
        yield made


@pytest.fixture
def house(_one_house: House, desk: CascadeDesk) -> House:
    return _one_house


@pytest.fixture
def caller(house: House) -> Caller:
    return house.caller()


def ticked(desk: CascadeDesk) -> None:
    """A tick of a daemon that is slow, so that it is current for long."""
    desk.tick()
    desk.client.hset("copyrisk:tick", "period_ms", 60_000)


def where(account: str) -> str:
    user_type, _, user_id = account.partition(":")
    return f"user_type={user_type}&user_id={user_id}"


def paged(caller: Caller, path: str, name: str, by: str = "after", limit: int = 2) -> list[Any]:
    """Everything of a list, page by page."""
    found: list[Any] = []
    path += ("&" if "?" in path else "?") + f"limit={limit}"
    at = ""
    for _ in range(1_000):
        page = data(caller.get(path + (f"&{by}={at}" if at else "")))
        assert len(page[name]) <= limit
        found += page[name]
        if page["next"] is None:
            return found
        at = page["next"]
    raise AssertionError("the pages have no end")


# ---- figures


def test_figures_are_numbers_while_they_are_known(desk: CascadeDesk, caller: Caller) -> None:
    desk.account("live:1")
    path = "/api/portfolios/live/1"
    never = data(caller.get(path))
    assert (never["state"], never["last_known"], never["age_ms"]) == ("absent", None, None)
    assert {never[name] for name in FIGURES} == {None}
    desk.open("live:1", "O")
    ticked(desk)
    known = data(caller.get(path))
    assert (known["state"], known["calc_status"], known["degraded_fields"]) == ("known", "ok", [])
    stored = desk.office.portfolio("live:1")
    assert {name: known[name] for name in FIGURES} == {name: float(stored[name]) for name in FIGURES}
    assert known["last_known"] == {name: known[name] for name in FIGURES}
    assert 0 <= known["age_ms"] < 60_000
    desk.client.hdel("market:EURUSD", "ask")
    ticked(desk)
    unknown = data(caller.get(path))
    assert (unknown["state"], unknown["calc_status"] == "ok", bool(unknown["degraded_fields"])) == (
        "unknown",
        False,
        True,
    )
    assert {unknown[name] for name in FIGURES} == {None}
    assert (unknown["last_known"], unknown["valued_ts"]) == (known["last_known"], known["valued_ts"])
    desk.quote()
    ticked(desk)
    assert data(caller.get(path))["state"] == "known"
    desk.client.hset("user_portfolio:{live:1}", mapping={"calc_status": "degraded", "degraded_fields": "x"})
    partly = data(caller.get(path))  # all but what is reserved
    assert (partly["state"], partly["equity"], partly["used_margin_all"]) == ("known", known["equity"], None)
    assert partly["last_known"]["used_margin_all"] == known["used_margin_all"]
    desk.client.hset("user_portfolio:{live:1}", mapping={"calc_status": "ok", "degraded_fields": ""})
    desk.client.hset("copyrisk:tick", mapping={"ts": now_ms() - 2_500, "period_ms": 200})
    stale = data(caller.get(path))
    assert (stale["state"], stale["calc_status"], stale["equity"]) == ("stale", "ok", None)
    assert stale["last_known"] == known["last_known"]
    desk.client.rename("copyrisk:tick", "kept")
    desk.client.set("copyrisk:tick", "no hash")
    assert data(caller.get(path))["state"] == "unavailable"
    desk.client.rename("kept", "copyrisk:tick")
    desk.client.hset("user_portfolio:{live:1}", mapping={"equity": "nan", "margin_level": "1e5"})
    ticked(desk)
    unreadable = data(caller.get(path))
    assert (unreadable["state"], unreadable["margin_level"], unreadable["last_known"]["equity"]) == (
        "unknown",
        None,
        None,
    )


def test_a_daemon_whose_clock_is_off_ticks_if_it_is_seen_to() -> None:
    ticks, old = Ticks(), now_ms() - 10**9

    def look(ts: object, period_ms: object = 60_000) -> str:
        return ticks.look({"ts": str(ts), "period_ms": str(period_ms)}).state

    assert [look(old), look(old), look(old + 1), look(old + 1)] == ["stale", "stale", "live", "live"]
    assert [look(old), look(old + 1)] == ["stale", "live"]  # it went back: nothing is known of it
    ticks._looked_s -= 1_000
    ticks._moved_s -= 1_000
    assert [look(old + 2), look(old + 3)] == ["stale", "live"]  # it may have moved long ago
    assert ticks.look(None).state == "unavailable"
    assert [look(old + 2), look(""), look("x"), look(old + 3)] == ["stale"] * 4
    assert look(now_ms()) == look(now_ms() + 1_000) == look(now_ms() - 150_000) == "live"
    assert Ticks().look({"ts": str(now_ms() - 2_500)}).state == "stale"
    assert Ticks().look({"ts": str(now_ms() - 2_500), "period_ms": "1000"}).state == "live"


@given(said=st.fixed_dictionaries(dict.fromkeys(PORTFOLIO_FIELDS, _WORDS)), state=st.sampled_from(_STATES))
@settings(max_examples=200, deadline=None)
def test_only_what_is_known_has_figures(said: dict[str, str], state: str) -> None:
    found = judge_portfolio(said, state, 9)
    known = found.state == "known"
    assert known == (any(number is not None for number in found.figures.values()))
    if known:
        assert state == "live" and found.calc_status in ("ok", "degraded")
        missing = {name for name, number in found.figures.items() if number is None}
        assert missing <= {"used_margin_all", "margin_level"}
        assert ("used_margin_all" in missing) == (found.calc_status == "degraded")
        assert ("margin_level" in missing) == (found.figures["used_margin_executed"] == 0)
    if state != "live":
        assert found.state in (state, "absent")


def test_absent_accounts_are_not_flat(desk: CascadeDesk, caller: Caller) -> None:
    for path in ("/api/portfolios/live/9", f"/api/orders?{where('live:9')}", "/api/accounts/live/9/history"):
        assert refusal(caller.get(path)) == (404, "unknown_account")
    desk.client.hset("user_portfolio:{live:9}", mapping={"equity": "5", "calc_status": "ok"})
    assert refusal(caller.get("/api/portfolios/live/9")) == (404, "unknown_account")
    assert refusal(caller.get("/api/portfolios/bogus/9")) == (422, "invalid_user_type")
    desk.account("live:9")
    assert data(caller.get(f"/api/orders?{where('live:9')}"))["orders"] == []
    assert data(caller.get("/api/accounts/live/9/history"))["entries"] == []


def test_what_cannot_be_read_is_no_figure(desk: CascadeDesk, caller: Caller) -> None:
    desk.account("live:1")
    ticked(desk)
    desk.client.set("user_portfolio:{live:1}", "no hash")
    found = data(caller.get("/api/portfolios/live/1"))
    assert (found["state"], found["degraded_fields"], found["calc_status"]) == ("unknown", ["unreadable"], None)
    assert {found[name] for name in (*FIGURES, "last_known")} == {None}
    desk.client.set("user_orders_index:{live:1}", "no set")
    assert caller.get(f"/api/orders?{where('live:1')}").status_code == 503


# ---- orders


def test_orders_come_in_pages_and_those_that_ended_by_id(desk: CascadeDesk, caller: Caller) -> None:
    desk.account("live:1")
    for number in range(5):
        desk.open("live:1", f"O{number}", lots="0.01", stop_loss="1.05")
    desk.client.sadd("user_orders_index:{live:1}", "LOST")
    path = f"/api/orders?{where('live:1')}"
    found = {one["order_id"]: one for one in paged(caller, path, "orders")}
    assert list(found) == ["LOST", "O0", "O1", "O2", "O3", "O4"]
    assert found["LOST"] == {"order_id": "LOST", "unreadable": True}
    assert found["O3"] == desk.order("live:1", "O3")
    assert data(caller.get(path))["count"] == 6
    one = f"/api/orders/O1?{where('live:1')}"
    is_open = data(caller.get(one))
    assert (is_open["is_open"], is_open["order"]["stop_loss"]) == (True, "1.05")
    desk.do("close", "live:1", order_id="O1")
    ended = data(caller.get(one))
    assert (ended["is_open"], ended["order"]["order_status"]) == (False, "CLOSED")
    assert {"net_profit", "close_price"} <= ended["order"].keys()
    assert not [name for name in ended["order"] if name.startswith("copyrisk")]


def test_an_order_that_cannot_be_read_has_not_ended(desk: CascadeDesk, caller: Caller) -> None:
    desk.account("live:1")
    desk.open("live:1", "O")
    path = f"/api/orders/O?{where('live:1')}"
    assert data(caller.get(path))["is_open"]
    record = desk.client.hgetall("order_data:O")
    desk.client.set("order_data:O", "no hash")
    assert data(caller.get(path))["is_open"]
    desk.client.set("user_holdings:{live:1}:O", "no hash")
    assert refusal(caller.get(path)) == (503, "order_unreadable")
    desk.client.delete("order_data:O")
    desk.client.hset("order_data:O", mapping=record)
    assert refusal(caller.get(path)) == (503, "order_unreadable")


def test_an_order_of_another_account_is_none(desk: CascadeDesk, house: House) -> None:
    for account in ("live:1", "live:2"):
        desk.account(account)
    desk.open("live:1", "O")
    assert desk.open("live:2", "BIG", lots="20")["event"] == "refused"
    other = house.caller(accounts=("live:2",))
    for order_id in ("O", "NONE", "BIG"):
        assert refusal(other.get(f"/api/orders/{order_id}?{where('live:2')}")) == (404, "unknown_order")
    for path in (f"orders/O?{where('live:1')}", f"orders?{where('live:1')}", "portfolios/live/1"):
        assert refusal(other.get(f"/api/{path}")) == (403, "account_forbidden")
    for path in ("orders/answers/K", "accounts/live/1/history"):
        assert other.get(f"/api/{path}?{where('live:1')}").status_code in (403, 422)
    assert refusal(other.get(f"/api/orders/a%20b?{where('live:2')}")) == (422, "invalid_order_id")
    assert refusal(other.get("/api/orders?user_type=live")) == (422, "missing_user_id")


def test_what_came_of_a_change_is_found_by_its_key(desk: CascadeDesk, caller: Caller) -> None:
    desk.account("live:1")
    path = "/api/orders/answers/{}?" + where("live:1")
    assert refusal(caller.get(path.format("K"))) == (404, "unknown_answer")
    desk.open("live:1", "O", idempotency_key="K")
    desk.open("live:1", "BIG", lots="20", idempotency_key="L")
    done, refused = (data(caller.get(path.format(key))) for key in ("K", "L"))
    assert (done["outcome"], done["order_id"], done["order"]["symbol"], done["data"]) == ("done", "O", "EURUSD", None)
    assert done["version"] == desk.version("live:1")
    assert (refused["outcome"], refused["code"], refused["order"]) == ("refused", "insufficient_margin", None)
    data(caller.post("/api/copy-trading/follow", {"master_id": "M", "follower_id": "F", "investment": 5}, "N"))
    acted = data(caller.get(f"/api/orders/answers/N?{where('copy_follower:F')}"))
    assert (acted["type"], acted["order_id"], acted["data"]["copy_status"]) == ("follow", None, "active")
    desk.client.set("copyrisk:{live:1}:answer:key:X", "{}")
    assert refusal(caller.get(path.format("X"))) == (409, "answer_unreadable")


# ---- decisions and cascades


def test_a_decision_is_told_to_those_it_is_about(desk: CascadeDesk, house: House) -> None:
    desk.followers(5)
    desk.follower("POOR", "1")
    desk.open_master("O")
    desk.replicate()
    path = "/api/decisions/O"
    everybody = paged(house.caller(accounts=(M,)), path, "followers")
    assert [one["follower"] for one in everybody] == ["F0", "F1", "F2", "F3", "F4", "POOR"]
    assert (everybody[0]["lots"], everybody[0]["result"], everybody[5]["lots"]) == ("0.1", "copied", "0")
    whole = data(house.caller().get(path))
    assert (whole["order"]["copied"], whole["order"]["why_not"], whole["differs"]) == (5, {"below_min": 1}, {})
    own = house.caller(accounts=(F0, "copy_follower:POOR"))
    seen = data(own.get(path))
    assert [one["follower"] for one in seen["followers"]] == ["F0", "POOR"]
    assert "master_figures" not in seen["order"] and seen["order"]["symbol"] == "EURUSD"
    copy = desk.copies()["F0"]["order_id"]
    (one,) = data(own.get(f"/api/decisions/{copy}"))["followers"]
    assert one == seen["followers"][0]
    assert data(own.get(f"{path}?follower=F0"))["followers"] == [one]
    other = house.caller(accounts=("copy_follower:X", "live:*"))
    for hidden in (path, f"/api/decisions/{copy}", "/api/decisions/NONE", f"{path}?follower=X"):
        assert refusal(other.get(hidden)) == (404, "unknown_decision")
    assert refusal(own.get(f"{path}?follower=F1")) == (404, "unknown_decision")
    assert refusal(own.get(f"/api/decisions/{copy}?follower=POOR")) == (404, "unknown_decision")
    assert refusal(own.get("/api/decisions/a%0A")) == (422, "invalid_order_id")


def test_a_cascade_is_told_to_those_it_is_about(desk: CascadeDesk, house: House) -> None:
    desk.followers(3)
    desk.open_master("O")
    desk.replicate()
    desk.begin()
    everything = house.caller()
    (running,) = data(everything.get("/api/cascades"))["cascades"]
    assert (running["id"], running["state"], running["followers"]) == (EVENT, "running", 3)
    desk.cascade()
    (ended,) = data(everything.get("/api/cascades"))["cascades"]
    assert (ended["state"], ended["done"], ended["master"]) == ("ended", 3, "M")
    path = f"/api/cascades/{EVENT}"
    rows = paged(everything, path, "followers")
    assert [(one["follower"], one["stage"], one["closed"]) for one in rows] == [(f"F{i}", "done", 1) for i in range(3)]
    assert SAID.items() <= data(everything.get(path))["cascade"]["said"].items()
    own = house.caller(accounts=(F0,))
    assert data(own.get("/api/cascades"))["cascades"] == []
    seen = data(own.get(path))
    assert [one["follower"] for one in seen["followers"]] == ["F0"] and "said" not in seen["cascade"]
    assert refusal(house.caller(accounts=("live:*",)).get(path)) == (404, "unknown_cascade")
    assert refusal(everything.get("/api/cascades/none")) == (404, "unknown_cascade")
    assert refusal(everything.get("/api/cascades/a%20b")) == (422, "invalid_cascade_id")
    desk.client.hset("copyrisk:{cutoff}:cascade:" + EVENT, "header", "{")
    assert data(everything.get("/api/cascades"))["cascades"] == [{"id": EVENT, "state": "cascade_unreadable"}]
    assert refusal(everything.get(path)) == (503, "cascade_unreadable")


# ---- the audit trail

KINDS = (AuditKind.WARNING, AuditKind.LIQUIDATION, AuditKind.OPERATOR)
ACCOUNTS = ("live:1", "live:12", "demo:1", "")


def entries(count: int, seed: int) -> list[Entry]:
    """Some, of which every 17th says so much that it has parts."""
    chance = random.Random(seed)
    made = []
    for number in range(count):
        said: dict[str, Any] = {"number": number}
        if chance.random() < 0.3:
            said["accounts"] = chance.sample(ACCOUNTS[:3], chance.randint(1, 2))
        if number % 17 == 5:
            said["text"] = 'x"' * 40_000
        kind, account = chance.choice(KINDS), chance.choice(ACCOUNTS)
        made.append(Entry(kind, account, "cause", "reason", said, ts_ms=1_000_000 + number * 1_000))
    return made


def appended(desk: Desk, some: list[Entry]) -> None:
    pipe = Pipe(desk.new_client())
    Trail(pipe, writer="test").append(some)
    pipe.close()


def about(entry: Entry, account: str) -> bool:
    return entry.account == account or account in entry.said.get("accounts", ())


@pytest.mark.parametrize("page", [7, 500])
def test_the_trail_is_searched_backwards_to_its_beginning(
    page: int, desk: CascadeDesk, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trail_search, "_PAGE", page)
    monkeypatch.setattr(trail_search, "LOOKED_AT", 2 * page)
    some = entries(70, page)
    appended(desk, some)
    begin, end = some[20].ts_ms, some[50].ts_ms
    searches: list[tuple[str, Any]] = [
        ("", lambda one: True),
        ("account=live:1", lambda one: about(one, "live:1")),
        ("kind=warning", lambda one: one.kind == "warning"),
        ("kind=operator&account=demo:1", lambda one: one.kind == "operator" and about(one, "demo:1")),
        (f"from_ms={begin}&to_ms={end}", lambda one: begin <= one.ts_ms <= end),
        (f"to_ms={some[0].ts_ms - 1}", lambda one: False),
        (f"from_ms={some[-1].ts_ms + 1}", lambda one: False),
    ]
    for query, is_wanted in searches:
        expected = [one.said["number"] for one in reversed(some) if is_wanted(one)]
        found = paged(caller, f"/api/audit?{query}", "entries", by="before", limit=9)
        numbers = [one["said"]["number"] for one in found if one["kind"] != "restart"]
        assert numbers == expected, query
        assert all("text" not in one["said"] or len(one["said"]["text"]) == 80_000 for one in found)


def test_the_trail_is_searched_a_bounded_part_at_a_time(
    desk: CascadeDesk, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trail_search, "_PAGE", 10)
    monkeypatch.setattr(trail_search, "LOOKED_AT", 20)
    monkeypatch.setattr(trail_search, "SAID_CHARS", 50_000)
    appended(desk, [Entry(AuditKind.WARNING, f"live:{number}", ts_ms=1_000_000) for number in range(100)])
    first = data(caller.get("/api/audit?account=live:0"))
    assert (first["entries"], first["looked_at"], first["next"]) == ([], 20, 82)
    (only,) = paged(caller, "/api/audit?account=live:0", "entries", by="before")
    assert only["seq"] == 2  # the first one says that the trail begins
    appended(desk, [Entry(AuditKind.KILL, "live:1", said={"text": "y" * 60_000})])
    (much,) = data(caller.get("/api/audit?kind=kill"))["entries"]
    assert much["said"] is None
    desk.client.xadd("copyrisk:{audit}:trail", {"entry": "no entry"}, id="500-0")
    assert data(caller.get("/api/audit"))["unreadable"] == 1


def test_entries_about_others_are_not_shown(desk: CascadeDesk, house: House) -> None:
    some = entries(60, 1)
    appended(desk, some)
    own = house.caller(accounts=("live:1", "demo:*"))
    mine = {"live:1", "demo:1"}

    def is_mine(one: Entry) -> bool:
        return one.account in mine or (not one.account and {*one.said.get("accounts", ["nobody"])} <= mine)

    found = [one["said"]["number"] for one in paged(own, "/api/audit", "entries", by="before", limit=50)]
    assert found == [one.said["number"] for one in reversed(some) if is_mine(one)]
    assert refusal(own.get("/api/audit?account=live:12")) == (403, "account_forbidden")
    assert refusal(house.caller(scopes=("orders:read",)).get("/api/audit")) == (403, "missing_scope")
    for query, code in (
        ("kind=bogus", "invalid_kind"),
        ("account=live", "invalid_account"),
        ("from_ms=x", "invalid_from_ms"),
        ("to_ms=1e5", "invalid_to_ms"),
        ("before=0", "invalid_before"),
        ("limit=501", "invalid_limit"),
        ("limit=%D9%A3", "invalid_limit"),
        ("since=1", "unknown_parameter"),
    ):
        assert refusal(own.get(f"/api/audit?{query}")) == (422, code), query


def test_an_accounts_history_is_its_own(desk: CascadeDesk, caller: Caller) -> None:
    desk.account("live:1")
    for number in range(5):
        desk.open("live:1", f"O{number}", lots="0.01")
    desk.open("live:1", "BIG", lots="20")
    desk.client.xadd("copyrisk:{live:1}:audit", {"entry": "["})
    found = paged(caller, "/api/accounts/live/1/history", "entries", by="before")
    assert found[0]["unreadable"] and found[1]["code"] == "insufficient_margin"
    assert [one["order_id"] for one in reversed(found[2:])] == [f"O{number}" for number in range(5)]
    assert found[2]["order"]["order_status"] == "OPEN"
    assert refusal(caller.get("/api/accounts/live/1/history?before=-")) == (422, "invalid_before")


def test_the_document_says_what_there_is(house: House) -> None:
    paths = make_app([make(house.api) for make in (copying_routes, reading_routes, report_routes)]).openapi()["paths"]
    audit = {one["name"]: one["schema"] for one in paths["/api/audit"]["get"]["parameters"]}
    assert audit["limit"]["type"] == "integer" and audit["kind"]["enum"] == [kind.value for kind in AuditKind]
    follow = paths["/api/copy-trading/follow"]["post"]
    body = follow["requestBody"]["content"]["application/json"]["schema"]
    assert {*SETTING_NAMES} <= body["properties"].keys() and body["required"] == ["master_id", "follower_id"]
    assert [one["name"] for one in follow["parameters"]] == ["Idempotency-Key"]


def test_answers_are_as_they_are_documented(desk: CascadeDesk, caller: Caller) -> None:
    desk.followers(1)
    desk.client.set("copy_follower_master:F0:provider_id", "M")
    desk.open_master("O")
    desk.replicate()
    desk.begin_and_cascade()
    desk.tick()
    desk.open("copy_follower:F0", "X", idempotency_key="K")
    made: tuple[tuple[str, type[Shape]], ...] = (
        ("portfolios/copy_follower/F0", Portfolio),
        (f"orders?{where(F0)}", OrderPage),
        (f"orders/X?{where(F0)}", OneOrder),
        (f"orders/answers/K?{where(F0)}", KeyAnswer),
        ("decisions/O", DecisionPage),
        ("cascades", CascadeList),
        (f"cascades/{EVENT}", CascadePage),
        ("audit", TrailPage),
        ("accounts/copy_follower/F0/history", HistoryPage),
        ("copy-trading/accounts/F0", Relationship),
        ("copy-trading/masters/M/followers", FollowerPage),
        ("copy-trading/relationships", RelationshipPage),
        ("copy-trading/relationships/check", RelationshipCheck),
    )
    for path, shape in made:
        shape.model_validate(data(caller.get(f"/api/{path}")), strict=True)
