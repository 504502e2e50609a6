"""What processes count of themselves, how it is told over HTTP, and that documents name what there is."""

import json
import random
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from copyrisk import vitals
from copyrisk._core import LadderState
from copyrisk.book import Book
from copyrisk.census import Census
from copyrisk.commands import Kind
from copyrisk.cutoff_report import CutoffReport
from copyrisk.engine import TickReport
from copyrisk.errors import ConfigError
from copyrisk.exposition import Exposition
from copyrisk.gateway.watch import Backoff, Watch
from copyrisk.health import judge_loop, judge_parts, serving
from copyrisk.layout import FIGURES
from copyrisk.metrics import Poll, Poller, note_backlog, note_tick
from copyrisk.roles import ROLES, make_replicator, make_workers
from copyrisk.rules import ValuationRules
from copyrisk.store.backlog import Backlog, read_backlog
from copyrisk.store.pipe import Pipe
from copyrisk.terms import AccountType
from copyrisk.vitals import METRICS, Metric, MetricKind, Vitals
from tests.copying_desk import CopyDesk
from tests.trading import Desk, until

DOCS = Path(__file__).parent.parent / "docs"
DASHBOARD, ALERTS = DOCS / "grafana" / "copyrisk.json", DOCS / "prometheus" / "alerts.yml"
NAMES = re.compile(r"\b(?:[a-z_]+:)?copyrisk_[a-z0-9_]+(?::[a-z0-9_]+)?\b")


def scraped(seen: Vitals) -> dict[tuple[str, tuple[str, ...]], float]:
    """What Prometheus reads: by name and values of the labels, in the order of their names."""
    families = text_string_to_metric_families(Exposition(seen).text().decode())
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


# ---- documents


def test_the_documentation_lists_exactly_the_metrics_there_are() -> None:
    rows = re.findall(r"^\| `(copyrisk_\w+)` \| (.*) \|$", (DOCS / "metrics.md").read_text(), re.MULTILINE)
    told = {
        metric.name: " | ".join(
            (
                metric.kind.value,
                ", ".join(f"`{label}`" for label in metric.labels),
                ", ".join(metric.roles) or "all",
                metric.meaning,
            )
        )
        for metric in METRICS.values()
    }
    assert dict(rows) == told
    assert len(rows) == len(told)


def _series() -> set[str]:
    """The names that may be asked for."""
    found = set[str]()
    for metric in METRICS.values():
        is_spread = metric.kind is MetricKind.HISTOGRAM
        found |= {metric.name + end for end in ("_bucket", "_sum", "_count")} if is_spread else {metric.name}
    return found


def test_the_alerts_ask_for_what_there_is() -> None:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    recorded = {rule["record"] for rule in rules if "record" in rule}
    alerts = [rule for rule in rules if "alert" in rule]
    assert len({rule["alert"] for rule in alerts}) == len(alerts) > 20
    for rule in rules:
        assert set(NAMES.findall(rule["expr"])) <= _series() | recorded, rule
        assert "copyrisk" in rule["expr"]
        _assert_labels(rule["expr"])
    for rule in alerts:
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        named = set(NAMES.findall(rule["annotations"]["description"]))
        assert named <= METRICS.keys(), rule
    assert {rule for rule in recorded if not any(rule in other["expr"] for other in alerts)} <= {
        "job:copyrisk_tick_seconds:p99"
    }


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_takes_the_alerts() -> None:
    done = subprocess.run(["promtool", "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_asks_for_what_there_is() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    for expression in asked:
        assert set(NAMES.findall(expression)) <= _series(), expression
        _assert_labels(expression)
    used = {name for expression in asked for name in NAMES.findall(expression)}
    shown = {name for name in METRICS if any(one.startswith(name) for one in used)}
    assert shown == METRICS.keys()
    (source,) = dashboard["templating"]["list"]
    assert source["type"] == "datasource"
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
    assert "id" not in dashboard


def _assert_labels(expression: str) -> None:
    """A selector names labels that the metric has, and values of `state` that are written."""
    for name, selector in re.findall(r"(copyrisk_\w+)\{([^}]*)\}", expression):
        metric = next(one for one in METRICS.values() if name.startswith(one.name))
        for label, value in re.findall(r"(\w+)(?:=~?|!=|!~)\"([^\"]*)\"", selector):
            assert label in (*metric.labels, "le"), expression
            if metric is vitals.ACCOUNTS and label == "state":
                assert value in ("unknown", "critical")
            if label == "le":
                assert float(value) in metric.bounds and "." in value


def test_no_label_can_name_an_account() -> None:
    bounded = {"version", "role", "reason", "part", "stream", "group", "outcome", "type", "state", "result", "lease"}
    bounded |= {"kind", "trigger", "sink", "route", "status"}
    assert {label for metric in METRICS.values() for label in metric.labels} <= bounded
    for metric in METRICS.values():
        assert re.fullmatch(r"copyrisk_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind is MetricKind.COUNTER), metric.name
        assert set(metric.roles) <= set(ROLES)


# ---- numbers


@pytest.mark.parametrize("role", ROLES)
def test_a_process_has_the_metrics_of_its_role_from_the_beginning(role: str) -> None:
    body = Exposition(Vitals(role)).text().decode()
    there = set(re.findall(r"^# TYPE (copyrisk_\w+) ", body, re.MULTILINE))
    assert there == {name for name, metric in METRICS.items() if not metric.roles or role in metric.roles}
    assert "process_cpu_seconds_total" in body


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-1, 60), max_size=40), st.integers(1, 5))
def test_a_histogram_is_what_counting_one_by_one_gives(values: list[float], parts: int) -> None:
    seen = Vitals("replicator")
    for start in range(parts):
        seen.observe(vitals.COPY_SECONDS, values[start::parts])
    found = scraped(seen)
    name = vitals.COPY_SECONDS.name
    for bound in vitals.COPY_SECONDS.bounds:
        assert found[f"{name}_bucket", (str(bound),)] == sum(value <= bound for value in values)
    assert found[f"{name}_count", ()] == found[f"{name}_bucket", ("+Inf",)] == len(values)
    assert found[f"{name}_sum", ()] == pytest.approx(sum(max(0.0, value) for value in values))


def test_labels_that_do_not_fit_are_a_fault_at_once() -> None:
    with pytest.raises(AssertionError, match="copyrisk_ticks_total"):
        Vitals().count(vitals.TICKS)
    with pytest.raises(AssertionError, match="copyrisk_orders"):
        Vitals().set(vitals.ORDERS, 1, "live")


TYPES = [kind.value for kind in AccountType]


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from(TYPES), st.integers(0, 9)), max_size=60), st.randoms())
def test_the_census_is_what_counting_names_gives(moves: list[tuple[bool, str, int]], dice: random.Random) -> None:
    """Rows are freed and taken by accounts of other types; nobody is counted under the name of another."""
    book = Book(ValuationRules())
    census = Census(book)
    for comes, kind, number in moves:
        tag = f"{kind}:{number}".encode()
        row = book.account_ids.row_of(tag)
        if comes:
            book.ensure_accounts([tag])
        elif row >= 0:
            book.remove_accounts(np.array([row], np.int32))
        figures = np.zeros(len(book.born), FIGURES)
        figures["state"] = [dice.randrange(len(LadderState)) for _ in range(len(figures))]
        expected = {(kind, state): 0 for kind in AccountType for state in LadderState}
        for used in book.account_rows().tolist():
            expected[book.account_at(used).type, LadderState(figures["state"][used])] += 1
        assert census.count(figures) == expected


CUTOFF = CutoffReport(
    warned=3, breached=2, recovered=1, liquidating=4, closes=7, cancels=5, refused=6, delayed_ticks=[0, 1, 4],
    held=8, braking=True, cascades_running=9, cascades_finished=10, is_leader=True, took_ms=12.0, audit_lag=11,
)  # fmt: skip


def _report(number: int, **more: Any) -> TickReport:
    said: dict[str, Any] = {"read_ms": 2.0, "value_ms": 1.0, "write_ms": 4.0, "late_ticks": 5, "accounts": 2}
    said |= {"orders": 20, "quotes": 3, "valued": 2, "written": 2, "refused": 1, "repaired": 4, "inconsistent": 6}
    said |= {"states_by_type": {(AccountType.LIVE, LadderState.STATE_UNKNOWN): 2}, "refused_keys": 9}
    return TickReport(number, 1_700_000_000_500, 200, **(said | {"unknown_by_reason": {"quote_stale": 2}} | more))


def test_a_tick_is_told() -> None:
    seen = Vitals("daemon")
    note_tick(seen, _report(1, cutoff=CUTOFF))
    note_tick(seen, _report(2, cutoff=CUTOFF))
    found = scraped(seen)
    for name, value in {
        "ticks_total full": 2, "late_ticks_total": 5, "tick_seconds_count all": 2, "tick_seconds_sum cutoff": 0.024,
        "tick_period_seconds": 0.2, "tick_timestamp_seconds": 1_700_000_000.5, "accounts unknown live": 2,
        "unknown_accounts quote_stale": 2, "orders": 20, "quotes": 3, "accounts_valued_total": 4,
        "portfolios_total written": 4, "portfolios_total refused": 2, "mirror_repaired_total": 4,
        "inconsistent_figures_total": 6, "refused_keys": 9, "cutoff_warnings_total": 6, "cutoff_breaches_total": 4,
        "cutoff_recoveries_total": 2, "cutoff_liquidating_accounts": 4, "cutoff_closes_total": 14,
        "cutoff_cancels_total": 10, "cutoff_refused_total": 12, "cutoff_delay_ticks_bucket 2.0": 4,
        "cutoff_delay_ticks_count": 6, "cutoff_held_accounts": 8, "cutoff_brake": 1, "cascades_running": 9,
        "cascades_finished_total": 20, "lease_held cutoff": 1, "audit_file_lag_entries": 11,
    }.items():  # fmt: skip
        metric, *labels = name.split()
        assert found[f"copyrisk_{metric}", tuple(labels)] == pytest.approx(value), name


def test_a_void_tick_is_counted_by_its_code_and_changes_no_figure() -> None:
    seen = Vitals("daemon")
    note_tick(seen, _report(1))
    before = scraped(seen)
    note_tick(seen, TickReport(2, 1_700_000_001_000, 200, late_ticks=5, skipped="store_unavailable: at host:1"))
    after = scraped(seen)
    changed = {key for key in after if after[key] != before.get(key) and key[0].startswith("copyrisk_")}
    assert changed == {
        ("copyrisk_ticks_total", ("store_unavailable",)),
        ("copyrisk_step_failures_total", ("store_unavailable",)),
    }
    assert ("copyrisk_audit_file_lag_entries", ()) not in after  # nothing is known of it, and that is not 0


def test_who_stands_by_says_so_and_a_lag_that_is_unknown_again_is_gone() -> None:
    seen = Vitals("daemon")
    note_tick(seen, _report(1, cutoff=CUTOFF))
    note_tick(seen, _report(2, cutoff=CutoffReport()))
    found = scraped(seen)
    assert found["copyrisk_lease_held", ("cutoff",)] == 0
    assert seen.parts["lease"] == (True, "standby")
    assert ("copyrisk_audit_file_lag_entries", ()) not in found


def test_autocutoff_that_could_not_act_is_told_by_its_code_and_nothing_else_is() -> None:
    seen = Vitals("daemon")
    note_tick(seen, _report(1, cutoff=CUTOFF))
    note_tick(seen, _report(2, cutoff=CutoffReport(failure="store_unavailable")))
    found = scraped(seen)
    assert found["copyrisk_cutoff_failures_total", ("store_unavailable",)] == 1
    assert seen.parts["cutoff"] == (False, "store_unavailable")
    assert not {name for name, _ in found} & {
        "copyrisk_cutoff_brake",
        "copyrisk_lease_held",
        "copyrisk_cascades_running",
    }
    assert found["copyrisk_cutoff_closes_total", ()] == 7
    assert found["copyrisk_tick_seconds_count", ("cutoff",)] == 1


# ---- what waits on the server


def test_what_waits_is_told(redis_server: Any) -> None:
    client: Any = redis_server.client()
    client.function_flush()
    pipe = Pipe(client)
    consumed = {"workers": ("copyrisk:commands", "copyrisk:reports"), "gateway": ("copyrisk:commands",)}
    client.xgroup_create("copyrisk:commands", "workers", "0", mkstream=True)
    seconds, _ = client.time()
    for i in range(5):
        client.xadd("copyrisk:commands", {"n": i}, id=f"{(seconds - 60) * 1000 + i}-0")
    ((_, ((first, _), _)),) = client.xreadgroup("workers", "me", {"copyrisk:commands": ">"}, count=2)
    client.xadd("copyrisk:dead_letters", {"n": 1})
    client.hset("copyrisk:waiting_copies", "one", 1)
    found = read_backlog(pipe, consumed)
    mine = found.streams["copyrisk:commands", "workers"]
    assert (mine.lag, mine.pending) == (3, 2)
    assert mine.oldest_s == pytest.approx(60, abs=5)
    missing = found.streams["copyrisk:reports", "workers"]
    assert (missing.lag, missing.pending, missing.oldest_s) == (None, None, 0.0)
    assert found.streams["copyrisk:commands", "gateway"].lag is None
    assert (found.dead_letters, found.waiting_copies, found.kills, found.has_functions) == (1, 1, 0, False)
    client.xack("copyrisk:commands", "workers", first)
    client.xdel("copyrisk:commands", first)
    mine = read_backlog(pipe, consumed).streams["copyrisk:commands", "workers"]
    assert (mine.lag, mine.pending) == (3, 1)
    client.xdel("copyrisk:commands", f"{(seconds - 60) * 1000 + 3}-0")  # nobody had it: the server gives up counting
    mine = read_backlog(pipe, consumed).streams["copyrisk:commands", "workers"]
    assert (mine.lag, mine.pending) == (2, 1)
    pipe.close()


def test_what_the_server_does_not_tell_has_no_value(bundled_server: Any) -> None:
    client: Any = bundled_server.client()
    client.set("copyrisk:commands", "no stream")
    client.set("copyrisk:dead_letters", "nor this")
    seen = Vitals("workers")
    seen.reads("workers", ("copyrisk:commands",))
    pipe = Pipe(client)
    note_backlog(seen, read_backlog(pipe, seen.consumed), is_up=True)
    pipe.close()
    found = scraped(seen)
    assert found["copyrisk_store_up", ()] == 1
    assert not [key for key in found if key[0].startswith(("copyrisk_stream", "copyrisk_dead"))]
    note_backlog(seen, Backlog(dead_letters=3), is_up=True)
    assert scraped(seen)["copyrisk_dead_letters", ()] == 3
    note_backlog(seen, Backlog(), is_up=False)
    assert ("copyrisk_dead_letters", ()) not in scraped(seen)


# ---- health


def test_a_loop_is_judged_by_its_last_complete_step() -> None:
    seen = Vitals("daemon")
    start_s = time.monotonic()
    assert judge_loop(seen, 500, start_s) == (True, "starting")
    assert judge_loop(seen, 500, start_s + 121) == (False, "loop_stalled")
    seen.step_done(rest_s=10.0)
    done_s = time.monotonic()
    assert judge_loop(seen, 500, done_s + 10.4) == (True, "ok")
    assert judge_loop(seen, 500, done_s + 10.6) == (False, "loop_stalled")
    seen.step_failed("store_unavailable")
    assert judge_loop(seen, 500, done_s + 10.6) == (False, "store_unavailable")
    seen.step_done()
    assert judge_loop(seen, 500, time.monotonic()) == (True, "ok")


def test_parts_are_judged() -> None:
    seen = Vitals("workers")
    seen.step_done()
    now_s = time.monotonic()

    def words(poll: Poll | None, later_s: float = 0.0) -> dict[str, tuple[bool, str]]:
        return judge_parts(seen, poll, 5_000, now_s + later_s)

    assert words(None)["store"] == (False, "starting")
    good = Poll(now_s, 2.0, has_functions=True)
    assert words(good) == {"loop": (True, "ok"), "store": (True, "ok"), "functions": (True, "ok")}
    assert words(good, 7.1)["store"] == (False, "store_unavailable")
    assert words(Poll(now_s, 2.0, "server_unreachable"))["store"] == (False, "server_unreachable")
    assert words(Poll(now_s, 2.0, has_functions=False))["functions"] == (False, "functions_missing")
    assert words(Poll(now_s, 2.0))["functions"] == (False, "unknown")
    seen.say("link", "link_unreachable", is_ready=False)
    assert words(good)["link"] == (False, "link_unreachable")


# ---- HTTP


@pytest.fixture(scope="module")
def port(_one_bundled_server: Any) -> Iterator[int]:
    """The endpoint of a process that has completed a step."""
    seen = Vitals("monitors")
    seen.step_done()
    with serving(seen, _one_bundled_server.client(), host="127.0.0.1", port=0, stall_ms=60_000) as listens:
        yield listens


def asked(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def raw(port: int, said: bytes) -> bytes:
    """What comes back until it hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)
        found = b""
        try:
            while part := connection.recv(65_536):
                found += part
        except ConnectionResetError:
            pass  # it did not read to the end what it had refused
        return found


def test_pages(port: int) -> None:
    assert asked(port, "/metrics")[0] == asked(port, "/healthz?verbose=1")[0] == 200
    until(lambda: asked(port, "/readyz")[0] == 200)
    assert json.loads(asked(port, "/readyz")[1])["parts"] == {"loop": "ok", "store": "ok"}
    assert 'copyrisk_ready{part="store"} 1.0' in asked(port, "/metrics")[1]
    assert asked(port, "/metrics", "HEAD") == (200, "")


@pytest.mark.parametrize("path", ["/", "/metrics/", "/metrics/../healthz", "/Metrics", "/%6detrics", "*"])
def test_other_pages_are_not_there(port: int, path: str) -> None:
    assert asked(port, path) == (404, '{"error": "not_found"}\n')


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW", "get"])
def test_other_methods_are_refused(port: int, method: str) -> None:
    assert asked(port, "/metrics", method) == (405, '{"error": "method_not_allowed"}\n')


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"\r\n", b""),
        (b"GET\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/banana\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1.1\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/9.9\r\n\r\n", b"505"),
        (b"GET /metrics HTTP/1.1 more words\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\r\n", b"400"),
        (b"\x00\xff\xfe\r\n\r\n", b"400"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET /metrics HTTP/1.1\r\n" + b"x: 1\r\n" * 200 + b"\r\n", b"431"),
        (b"GET /metrics HTTP/1.1\r\nx: " + b"a" * 70_000 + b"\r\n\r\n", b"431"),
        (b"GET /\xc3\xa9\x00<script> HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /healthz HTTP/1.1\r\nContent-Length: -5\r\n\r\n", b"200"),
    ],
)
def test_what_is_no_request_is_refused_in_a_word(
    port: int, said: bytes, status: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = raw(port, said)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert status in head.partition(b"\r\n")[0]
    if status not in (b"", b"200"):
        assert list(json.loads(body.splitlines()[-1])) == ["error"]
        assert b"<script>" not in answer and b"Python" not in answer
    assert asked(port, "/healthz")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_who_says_nothing_or_hangs_up_holds_up_nobody(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    silent = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(8)]
    assert asked(port, "/healthz")[0] == 200
    for one in silent:
        one.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        one.close()  # with a reset
    many = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(24)]
    for one in many:
        one.close()
    until(lambda: _is_answered(port))
    assert "Traceback" not in capfd.readouterr().err


def _is_answered(port: int) -> bool:
    try:
        return asked(port, "/healthz")[0] == 200
    except OSError:
        return False


def test_a_place_where_nobody_can_listen_is_named(port: int, bundled_server: Any) -> None:
    for host, number in (
        ("127.0.0.1", port),
        ("no.such.host.invalid", 0),
        ("192.0.2.1", 0),
        ("a" * 70, 0),
        ("\ud800", 0),
    ):
        made = serving(Vitals("daemon"), bundled_server.client(), host=host, port=number, stall_ms=500)
        with pytest.raises(ConfigError, match="cannot listen") as refused, made:
            pass
        assert refused.value.code == "cannot_listen"
        assert "\n" not in str(refused.value)


def test_a_poll_that_goes_wrong_in_an_unforeseen_way_is_no_good_news(bundled_server: Any) -> None:
    poller = Poller(bundled_server.client(), Vitals("workers"), longest_s=0.01)
    poller._vitals.consumed = {"group": (object(),)}  # type: ignore[dict-item]
    poller.start()
    until(lambda: poller.latest is not None)
    assert poller.latest is not None
    assert poller.latest.failure == "poll_failed"
    poller.stop()


# ---- loops


def test_a_request_is_unknown_until_something_is_said_of_it_that_makes_sense() -> None:
    watch = Watch(Backoff(1.0, 60.0), 30.0)
    for name in ("A", "B"):
        watch.sent(name, 0.0)
        watch.doubt(name)
    assert (len(watch), watch.unanswered, watch.unknown) == (2, 2, {"A", "B"})
    watch.answered("A", 1.0)
    watch.forget("B")
    assert (len(watch), watch.unanswered, watch.unknown) == (1, 0, set())


def counts(seen: Vitals, metric: Metric) -> dict[tuple[str, ...], float]:
    return {labels: value for labels, value in seen.numbers(metric).items() if value}


def test_workers_count_entries_by_kind_and_result(bundled_server: Any) -> None:
    desk = Desk(bundled_server, **{"workers.attempts": 2, "workers.retry_ms": 10})
    account, seen = desk.account("live:1"), Vitals("workers")
    workers = make_workers(desk.new_client(), desk.settings, tuple(Kind), seen=seen)
    workers._consumer.join()
    said = {"symbol": "EURUSD", "order_type": "BUY", "order_quantity": "1"}
    desk.send("open", account, order_id="A", **said)
    desk.send("open", account, order_id="A", **said)
    desk.send("open", account, order_id="B", **(said | {"order_quantity": "90"}))
    desk.send("open", account, order_id="C", **(said | {"order_quantity": "many"}))
    desk.send("close", account, order_id="A")
    desk.settle(workers=workers)
    assert counts(seen, vitals.ENTRIES) == {
        ("open", "done"): 1,
        ("open", "repeated"): 1,
        ("open", "refused"): 1,
        ("none", "refused"): 1,
        ("close", "done"): 1,
    }
    desk.client.set("user:{live:9}:config", "no hash")
    desk.send("open", "live:9", order_id="D", **said)
    desk.settle(workers=workers)
    assert counts(seen, vitals.ENTRIES)["open", "later"] == 2
    assert counts(seen, vitals.RETRIES) == {(): 1}
    assert counts(seen, vitals.BURIED) == {("account_unreadable",): 1}


def test_the_replicator_counts_copies_and_their_reasons(bundled_server: Any) -> None:
    desk = CopyDesk(bundled_server)
    seen = Vitals("replicator")
    desk.follower("F1")
    desk.follower("F2")
    desk.follower("F3", balance="0.5")
    desk._replicator = make_replicator(desk.new_client(), desk.settings, seen=seen)
    desk._replicator._consumer.join()
    desk.open_master()
    desk.replicate()
    desk.close_master()
    desk.replicate_until_settled()
    assert counts(seen, vitals.EVENTS) == {("made",): 1, ("followed",): 1}
    copies = counts(seen, vitals.COPIES)
    assert copies.pop(("made", "")) == 2
    (((result, reason), count),) = copies.items()
    assert (result, count) == ("skipped", 1) and reason == desk.result("F3")
    assert seen.spreads(vitals.COPY_SECONDS)[()][:-1] != () and sum(seen.spreads(vitals.COPY_SECONDS)[()][:-1]) == 2
    assert sum(seen.spreads(vitals.REPLICATION_SECONDS)[()][:-1]) == 1
    assert counts(seen, vitals.LEASE_HELD) == {("replicator",): 1}
    assert seen.parts["lease"] == (True, "held")
