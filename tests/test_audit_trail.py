"""The audit trail on real servers: several writers, deaths, lost connections and stores, files nobody can write."""

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from copyrisk import crash
from copyrisk.audit import AuditKind, Entry, Stored, joined, parse_line
from copyrisk.audit_check import Checked, Head, check_trail, stream_place
from copyrisk.audit_files import TrailFile, read_lines, segments
from copyrisk.errors import ConfigError, StoreError, StoreUnavailable
from copyrisk.store import functions, library
from copyrisk.store.pipe import Pipe
from copyrisk.store.trail import Trail
from copyrisk.store.trail_stream import TrailStream

STREAM, HEAD = "copyrisk:{audit}:trail", "copyrisk:{audit}:head"


class Died(BaseException):
    """What ends a process in the middle of its work."""


class House:
    """A server with the functions, a folder, and what can be asked of both."""

    def __init__(self, server: Any, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.client = server.client()
        library.load(self.client)
        self.files: list[TrailFile] = []

    def trail(self, name: str = "w", *, keeps_file: bool = False, **more: Any) -> Trail:
        for file in self.files if keeps_file else ():
            file.close()
        if keeps_file:
            self.files = [TrailFile(self.folder, more.pop("segment_bytes", 1 << 16))]
        file = self.files[0] if keeps_file else None
        return Trail(Pipe(self.server.client()), file=file, writer=name, **more)

    def lines(self) -> list[tuple[str, bytes]]:
        return [(entry_id.decode(), said.get(b"entry", b"")) for entry_id, said in self.client.xrange(STREAM)]

    def entries(self) -> list[Stored]:
        return [parse_line(line) for _, line in self.lines()]

    def causes(self) -> list[str]:
        return [entry.cause if entry.kind != "restart" else f"restart {entry.reason}" for entry in self.entries()]

    def filed(self) -> list[Stored]:
        return [parse_line(line) for _, line in read_lines(self.folder)]

    def verified(self, *, with_file: bool = True, **more: Any) -> Checked:
        there = TrailStream(Pipe(self.client)).look()
        lines = [(stream_place(entry_id), line) for entry_id, line in self.lines()]
        head = Head(there.head, int(there.first or 1))
        return check_trail(read_lines(self.folder) if with_file else None, lambda: (head, lines), **more)

    def assert_whole(self, *, with_file: bool = True) -> None:
        checked = self.verified(with_file=with_file)
        assert not checked.findings
        assert checked.in_stream


@pytest.fixture
def house(bundled_server: Any, tmp_path: Path) -> Iterator[House]:
    made = House(bundled_server, tmp_path / "trail")
    yield made
    for file in made.files:
        file.close()
    made.client.close()


@pytest.fixture
def each_house(redis_server: Any, tmp_path: Path) -> Iterator[House]:
    made = House(redis_server, tmp_path / "trail")
    yield made
    for file in made.files:
        file.close()
    made.client.close()


def entry(cause: str, **said: Any) -> Entry:
    return Entry(AuditKind.LIQUIDATION, "live:1", cause, "critical", said)


def test_two_writers_make_one_chain_and_the_file_has_all_of_it(each_house: House) -> None:
    house = each_house
    keeper, other = house.trail("keeper", keeps_file=True), house.trail("other")
    assert keeper.append([entry("a"), entry("b")]) == [2, 3]
    assert other.append([entry("c")]) == [4]
    assert keeper.append([entry("d", level_pct=9.5)]) == [5]
    assert other.append([]) == []
    assert other.append([entry("e"), entry("f")]) == [6, 7]
    assert keeper.follow() == 2
    assert (keeper.follow(), keeper.file_lag, other.file_lag, other.follow()) == (0, 0, 0, 0)
    assert house.causes() == ["restart empty", "a", "b", "c", "d", "e", "f"]
    assert house.filed() == house.entries()
    assert [one.writer for one in house.entries()] == ["keeper"] * 3 + ["other", "keeper"] + ["other"] * 2
    house.assert_whole()


def test_what_others_write_at_the_same_time_never_forks_the_chain(house: House) -> None:
    counts = dict.fromkeys("abc", 40)

    def write(name: str) -> None:
        trail = house.trail(name) if name != "a" else keeper
        for i in range(counts[name]):
            trail.append([entry(f"{name}{i}.{k}") for k in range(1 + i % 3)])

    keeper = house.trail("a", keeps_file=True)
    threads = [threading.Thread(target=write, args=name) for name in counts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keeper.follow()
    said = house.causes()[1:]
    for name, count in counts.items():
        expected = [f"{name}{i}.{k}" for i in range(count) for k in range(1 + i % 3)]
        assert [cause for cause in said if cause[0] == name] == expected
    house.assert_whole()


def test_much_goes_in_several_calls_and_a_large_entry_in_parts(house: House) -> None:
    trail = house.trail(keeps_file=True)
    seqs = trail.append([*(entry(str(i)) for i in range(2_050)), entry("big", plan=["x" * 99] * 10_000), entry("last")])
    assert seqs[:2_051] == list(range(2, 2_053)) and seqs[2_051] > 2_070
    *_, (big, said), (last, _) = joined(house.filed())
    assert (big.cause, said, last.link.seq) == ("big", {"plan": ["x" * 99] * 10_000}, seqs[-1])
    assert len(segments(house.folder)) > 5
    house.assert_whole()


def test_the_file_may_begin_later_than_the_trail(house: House) -> None:
    other = house.trail()
    other.append([entry("a"), entry("b")])
    keeper = house.trail(keeps_file=True)
    assert keeper.follow() == 3
    house.assert_whole()
    keeper.append([entry("c")])
    assert keeper.follow() == 0
    house.assert_whole()


def test_the_stream_is_trimmed_as_far_as_the_file_has_it(house: House) -> None:
    keeper, other = house.trail(keeps_file=True, stream_limit=10), house.trail("other")
    other.append([entry(str(i)) for i in range(30)])
    assert house.client.xlen(STREAM) == 31
    assert (keeper.follow(), house.client.xlen(STREAM), keeper.follow()) == (31, 10, 0)
    house.assert_whole()
    assert {one.code for one in house.verified(with_file=False).findings} == {"missing"}
    house.client.xdel(STREAM, "22-0")
    assert [one.code for one in house.verified().findings] == ["missing"]


# ---- deaths, and connections that break


@contextmanager
def dying_at(patch: pytest.MonkeyPatch, point: str) -> Iterator[None]:
    def reach(name: str) -> None:
        if name == point:
            raise Died(name)

    with patch.context() as patched:
        patched.setattr(crash, "reach", reach)
        try:
            yield
        except Died:
            return
    pytest.fail(f"{point} was not reached")


@pytest.mark.parametrize("point", ["trail.stored", "trail.written", "trail.filed"])
def test_a_death_between_redis_and_the_file_loses_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    house.trail(keeps_file=True).append([entry("a")])
    with dying_at(monkeypatch, point):
        house.trail("b", keeps_file=True).append([entry("b"), entry("c")])
    house.trail("other").append([entry("d")])
    assert house.trail("next", keeps_file=True).append([entry("e")]) == [6]
    assert house.causes() == ["restart empty", "a", "b", "c", "d", "e"]
    house.assert_whole()


def test_killed_in_the_middle_of_writing_the_next_process_goes_on(house: House) -> None:
    """A real process, killed at its n-th passing of a point, again and again."""
    program = (
        "import sys, redis; from pathlib import Path\n"
        "from copyrisk.audit import *; from copyrisk.audit_files import TrailFile\n"
        "from copyrisk.store.pipe import Pipe; from copyrisk.store.trail import Trail\n"
        "trail = Trail(Pipe(redis.Redis.from_url(sys.argv[1])), file=TrailFile(Path(sys.argv[2])), writer='p')\n"
        "for i in range(99): trail.append([Entry(AuditKind.KILL, cause=f'{i}.{k}') for k in range(3)])\n"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("COPYRISK_")}
    for point in ("trail.stored:2", "trail.written:3"):
        words = [sys.executable, "-c", program, house.server.url, str(house.folder)]
        killed = subprocess.run(words, env={**clean, "COPYRISK_CRASH_AT": point}, check=False)
        assert killed.returncode == -signal.SIGKILL
    assert house.trail(keeps_file=True).follow() in (0, 3)
    assert house.causes() == ["restart empty", *(f"{i}.{k}" for n in (2, 2) for i in range(n) for k in range(3))]
    house.assert_whole()


def test_a_torn_line_is_cut_off_and_fetched_again(house: House) -> None:
    house.trail(keeps_file=True).append([entry("a"), entry("b"), entry("c")])
    path = house.folder / segments(house.folder)[-1]
    whole = path.read_bytes()
    for torn in (whole[:-1], whole[:-200], whole.splitlines(keepends=True)[0][:-5], b"", whole[:-1] + b"\nhalf"):
        path.write_bytes(torn)
        house.trail(keeps_file=True).follow()
        assert b"".join((house.folder / name).read_bytes() for name in segments(house.folder)) == whole
    house.assert_whole()


class Breaking(Pipe):
    """A connection that breaks once: before a call is sent, or before its answer is there."""

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self.breaks: list[tuple[bool, str]] = []

    def exchange(self, commands: Any) -> list[Any]:
        if self.breaks and b"warning" in b"".join(commands):
            is_sent, code = self.breaks.pop(0)
            if is_sent:
                super().exchange(commands)
            self.close()
            raise StoreUnavailable("the connection broke", code=code)
        return super().exchange(commands)


@pytest.mark.parametrize("is_sent", [True, False])
@pytest.mark.parametrize("others", [0, 2])
def test_what_was_on_its_way_when_the_connection_broke_is_there_once(house: House, is_sent: bool, others: int) -> None:
    pipe = Breaking(house.server.client())
    file = TrailFile(house.folder)
    house.files.append(file)
    trail, other = Trail(pipe, file=file, writer="w"), house.trail("other")
    trail.append([entry("first")])
    warning = Entry(AuditKind.WARNING, cause="w"), Entry(AuditKind.WARNING, cause="v")
    pipe.breaks = [(is_sent, "server_unreachable")]  # and is there again at once
    assert trail.append(warning) == [3, 4]
    pipe.breaks = [(is_sent, "store_unavailable")]  # too slow
    with pytest.raises(StoreUnavailable):
        trail.append(warning)
    other.append([entry("other")] * others)
    assert trail.append(warning) == ([5, 6] if is_sent else [5 + others, 6 + others])
    pipe.breaks = [(is_sent, "store_unavailable")]
    with pytest.raises(StoreUnavailable):
        trail.append(warning)
    last = trail.append([entry("something else")])  # nobody asks for those any more
    trail.follow()
    assert last == [house.entries()[-1].link.seq]
    assert house.causes().count("w") == house.causes().count("v") == 2 + is_sent
    house.assert_whole()


# ---- stores that lose the trail


@pytest.mark.parametrize("keeps_file", [True, False])
@pytest.mark.parametrize("is_new", [True, False])
def test_redis_restarted_empty_begins_no_second_chain(each_house: House, keeps_file: bool, is_new: bool) -> None:
    house = each_house
    trail = house.trail(keeps_file=keeps_file)
    trail.append([entry("a"), entry("b")])
    last = house.entries()[-1].link
    house.client.flushall()
    trail = house.trail(keeps_file=keeps_file) if is_new else trail
    seqs = trail.append([entry("c")])
    (note, after) = house.entries()
    if keeps_file or not is_new:
        assert (note.previous, note.link.seq, seqs) == (last.hash, 4, [5])
        assert note.said["goes_on_from"] == f"3:{last.hash}"
    else:  # nobody knows
        assert (note.link.seq, seqs, house.verified(with_file=False).findings) == (1, [2], [])
        checked = house.verified(with_file=False, expected=last)
        assert [one.code for one in checked.findings] == ["expected_missing"]
    assert (note.kind, note.reason, after.cause) == ("restart", "empty", "c")
    if keeps_file:
        house.assert_whole()
        assert [one.cause for one in house.filed()] == ["trail", "a", "b", "trail", "c"]


def test_a_chain_that_another_began_meanwhile_is_kept_beside_the_first(house: House) -> None:
    keeper = house.trail("keeper", keeps_file=True)
    keeper.append([entry("a"), entry("b")])
    house.client.flushall()
    other = house.trail("other")  # it knows nothing of what was
    other.append([entry(str(i)) for i in range(5)])
    keeper.follow()
    assert house.causes() == ["restart other_chain"]
    aside = house.entries()[0].said["aside"]
    assert house.client.xlen(aside) == 6
    assert other.append([entry("c")]) == [6]  # behind a note: it had seen later ones
    assert keeper.append([entry("d")]) == [7]
    assert house.causes() == ["restart other_chain", "restart rewound", "c", "d"]
    house.assert_whole()
    for _ in range(3):
        assert other.append([entry("x")]) and keeper.append([entry("y")])
    assert "restart" not in " ".join(house.causes()[4:])


@pytest.mark.parametrize("first", [0, 1])
def test_two_that_keep_files_agree_again_after_a_loss(house: House, tmp_path: Path, first: int) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    house.files = [TrailFile(folder) for folder in folders]
    keepers = [Trail(Pipe(house.server.client()), file=file, writer=str(file.folder)) for file in house.files]
    keepers[0].append([entry("a"), entry("b")])
    keepers[1].follow()
    keepers[0].append([entry("c")])  # the second one never sees it
    house.client.flushall()
    for i in (first, 1 - first, first, 1 - first):
        keepers[i].append([entry(f"after {i}")])
    for keeper in keepers * 2:
        keeper.follow()
    lost = [parse_line(line).cause for _, line in read_lines(folders[0])]
    assert lost[:4] == ["trail", "a", "b", "c"]
    assert house.causes()[-3:] == [f"after {i}" for i in (1 - first, first, 1 - first)]
    ends = [list(read_lines(folder))[-1][1] for folder in folders]
    assert ends == [house.lines()[-1][1]] * 2
    count = house.client.xlen(STREAM)
    for keeper in keepers * 2:
        assert keeper.follow() == keeper.file_lag == 0
    assert house.client.xlen(STREAM) == count


def test_what_is_lost_before_the_file_has_it_is_a_gap_that_verify_finds(house: House) -> None:
    keeper, other = house.trail(keeps_file=True), house.trail("other")
    keeper.append([entry("a")])
    other.append([entry("b"), entry("c")])
    house.client.flushall()
    other.append([entry("d")])
    keeper.follow()
    keeper.append([entry("e")])
    assert [one.link.seq for one in house.filed()] == [1, 2, 5, 6, 7]
    assert house.causes() == ["restart empty", "d", "e"]
    assert {(one.seq, one.code) for one in house.verified().findings} == {(5, "missing"), (1, "missing")}
    assert not house.verified(start=5).findings
    assert house.files[0].holds(house.entries()[-1].link)


Spoil = Callable[[Any], Any]
SPOILED: dict[str, tuple[Spoil, str]] = {
    "head gone": (lambda client: client.delete(HEAD), "head_missing"),
    "head garbage": (lambda client: client.hset(HEAD, "hash", "x"), "head_missing"),
    "stream gone": (lambda client: client.delete(STREAM), "stream_behind"),
    "last gone": (lambda client: client.xdel(STREAM, "3-0"), "stream_behind"),
    "one more": (lambda client: client.xadd(STREAM, {"entry": "x"}, "4-0"), "stream_ahead"),
    "one more of the clock": (lambda client: client.xadd(STREAM, {"x": b"\xff"}), "stream_ahead"),
    "all but an entry gone": (lambda client: client.delete(HEAD) and client.xdel(STREAM, "3-0"), "head_missing"),
    "garbage alone": (
        lambda client: client.delete(HEAD) and client.xadd(STREAM, {"entry": "x"}, "4-5"),
        "unreadable",
    ),
}


@pytest.mark.parametrize("keeps_file", [True, False])
@pytest.mark.parametrize("deed", SPOILED)
def test_a_trail_that_was_tampered_with_goes_on_and_says_so(house: House, deed: str, keeps_file: bool) -> None:
    trail = house.trail(keeps_file=keeps_file)
    trail.append([entry("a"), entry("b")])
    last = house.entries()[-1].link
    SPOILED[deed][0](house.client)
    trail.append([entry("c")])
    note, after = house.entries()[-2:]
    rewound = deed == "all but an entry gone"
    assert (note.kind, note.reason, after.cause) == ("restart", SPOILED[deed][1], "c")
    assert after.link.seq == (5 if keeps_file or not rewound else 4)
    if keeps_file or not rewound:
        assert note.previous == last.hash
    if keeps_file:
        house.assert_whole()
    assert trail.append([entry("d")]) == [after.link.seq + 1]


def test_an_entry_that_was_changed_before_the_file_had_it_does_not_come_into_it(house: House) -> None:
    keeper, other = house.trail(keeps_file=True), house.trail("other")
    keeper.append([entry("a")])
    other.append([entry("b"), entry("c")])
    lines = house.lines()
    house.client.delete(STREAM)
    for entry_id, line in lines:
        house.client.xadd(STREAM, {"entry": line.replace(b"critical", b"harmless")}, entry_id)
    keeper.follow()
    assert house.causes() == ["restart other_chain"]
    assert [one.cause for one in house.filed()] == ["trail", "a", "trail"]
    house.assert_whole()


def test_a_trail_that_cannot_be_used_is_an_error_and_changes_nothing(house: House) -> None:
    trail = house.trail(keeps_file=True)
    trail.append([entry("a")])
    filed = house.filed()
    for key in (STREAM, HEAD):
        kept = house.client.dump(key)
        house.client.delete(key)
        house.client.set(key, "garbage")
        for call in (lambda: trail.append([entry("b")]), trail.follow):
            with pytest.raises(StoreError) as refused:
                call()
            assert refused.value.code == functions.KEY_UNUSABLE
        house.client.restore(key, 0, kept, replace=True)
    house.client.function_flush()
    with pytest.raises(StoreError) as refused:
        trail.append([entry("b")])
    assert refused.value.code == functions.FUNCTIONS_MISSING
    library.load(house.client)
    assert house.filed() == filed
    assert trail.append([entry("b")]) == [3]
    house.assert_whole()


# ---- files that cannot be written


def test_one_process_owns_a_folder(house: House) -> None:
    house.trail(keeps_file=True)
    with pytest.raises(ConfigError) as refused:
        TrailFile(house.folder)
    assert refused.value.code == "audit_folder_owned"
    blocked = house.folder / "lock" / "below"
    with pytest.raises(ConfigError) as refused:
        TrailFile(blocked)
    assert refused.value.code == "audit_folder_unusable" and "\n" not in str(refused.value)


def retried(trail: Trail) -> None:
    """As if the time after which a file is tried again were over."""
    trail._failed_s = -1e9


def test_a_full_disk_holds_nothing_up_and_the_file_catches_up(house: House) -> None:
    trail = house.trail(keeps_file=True, segment_bytes=1 << 20)
    trail.append([entry("a")])
    size = (house.folder / segments(house.folder)[0]).stat().st_size
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1_000, limits[1]))
        for i in range(5):
            assert trail.append([entry(f"{i}", much="x" * 400)]) == [3 + i]
            retried(trail)
        assert trail.file_lag >= 3
        trail.follow()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert [one.code for one in house.verified().findings][-1] == "file_behind"
    retried(trail)
    trail.append([entry("z")])
    assert trail.file_lag == 0
    assert house.filed() == house.entries() and len(house.filed()) == 8
    house.assert_whole()


@pytest.mark.parametrize("what", ["write", "fdatasync", "fsync", "open"])
def test_an_error_of_the_disk_at_any_step_is_an_alarm_once(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    trail = house.trail(keeps_file=True)
    trail.append([entry("a", much="x" * 70_000)])  # the next one begins a segment
    capsys.readouterr()

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EIO, "disk is ill")

    with monkeypatch.context() as ill:
        ill.setattr(os, what, fail)
        for i in range(3):
            trail.append([entry(str(i))])
            retried(trail)
            trail.follow()
    assert capsys.readouterr().out.count("audit_file_not_written") == 1 and trail.file_lag >= 3
    retried(trail)
    trail.follow()
    assert trail.file_lag == 0 and house.filed() == house.entries()
    house.assert_whole()


@pytest.mark.parametrize("deed", ["removed", "cut", "more"])
def test_a_file_that_somebody_else_changes_is_put_right_before_it_is_written_on(house: House, deed: str) -> None:
    trail = house.trail(keeps_file=True)
    trail.append([entry("a"), entry("b")])
    path = house.folder / segments(house.folder)[0]
    if deed == "removed":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-30] + (b"\xff" * 60 + b"\n" if deed == "more" else b""))
    trail.append([entry("c")])
    assert trail.file_lag > 0
    retried(trail)
    trail.append([entry("d")])
    assert trail.file_lag == 0
    house.assert_whole()
    assert house.causes() == ["restart empty", "a", "b", "c", "d"]


def test_nothing_is_written_behind_a_last_line_that_is_no_entry(house: House) -> None:
    house.trail(keeps_file=True).append([entry("a"), entry("b")])
    path = house.folder / segments(house.folder)[0]
    damaged = path.read_bytes()[:-30] + b"\xff" * 29 + b"\n"
    path.write_bytes(damaged)
    trail = house.trail(keeps_file=True)
    assert trail.append([entry("c")]) == [4]
    retried(trail)
    assert trail.follow() == 0
    assert trail.file_lag > 0 and path.read_bytes() == damaged
    assert {one.code for one in house.verified().findings} >= {"unreadable", "file_behind"}


def test_an_entry_is_what_is_documented(house: House) -> None:
    house.trail("host:7").append([Entry(AuditKind.BRAKE, "", "tick 9", "too many", {"share_pct": 6.5}, ts_ms=1_700)])
    said = json.loads(house.lines()[-1][1])
    assert said.pop("previous") == house.entries()[0].link.hash and len(said.pop("hash")) == 64
    assert said == {
        "account": "",
        "cause": "tick 9",
        "kind": "brake",
        "reason": "too many",
        "said": {"share_pct": 6.5},
        "seq": 2,
        "ts_ms": 1_700,
        "writer": "host:7",
    }


def test_a_user_that_may_do_what_is_documented_can_write_it(each_house: House) -> None:
    house = each_house
    page = (Path(__file__).parent.parent / "docs" / "settings.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith(("| audit trail |", "| connecting |"))]
    rules = [word for row in rows for quoted in re.findall(r"`([^`]+)`", row) for word in quoted.split()]
    words = ("reset", "on", ">pw", "resetkeys", "resetchannels", "-@all", *(rule.replace("\\|", "|") for rule in rules))
    house.client.execute_command("ACL", "SETUSER", "auditor", *words)
    own = house.server
    house.server = type(own)(own.url.replace("unix://", "unix://auditor:pw@"), own.pid)
    house.client.function_flush()
    library.load(house.server.client())
    trail = house.trail(keeps_file=True, stream_limit=3)
    trail.append([entry(str(i)) for i in range(5)])
    trail.follow()
    house.client.xadd(STREAM, {"other": "x"})
    trail.append([entry("aside")])
    house.client.delete(STREAM)
    trail.append([entry("new")])
    assert [one.code for one in house.verified().findings] == []
    house.client.execute_command("ACL", "DELUSER", "auditor")
