"""The documentation: it builds without a warning and loads nothing from elsewhere, and what it shows works."""

import doctest
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import redis

from copyrisk import RowCode, SizeCode
from copyrisk.daemon import make_engine
from copyrisk.embedded import EmbeddedServer
from copyrisk.operations import COMMANDS
from copyrisk.roles import ROLES
from tests.api_house import Caller, data, served, working
from tests.backoffice import BackOffice, now_ms
from tests.test_metrics_processes import Endpoint, environment
from tests.test_permissions import limit
from tests.trading import Desk, until

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
COMMAND = [sys.executable, "-m", "copyrisk.cli"]
REDIS = shutil.which("redis-server")
#: What each server user is for, as rows of the tables in docs/settings.md; all have those of connecting and metrics.
DAEMON = ("reading", "writing", "hearing of changes", "wishes to recalculate", "closing", "cascades", "protection")
USERS = {
    "daemon": (*DAEMON, "audit trail"),
    "workers": ("workers",),
    "replicator": ("replicator", "audit trail"),
    "monitors": ("monitors",),
    "gateway": ("gateway",),
    "recorder": ("recorder",),
    "notifier": ("notifier",),
    "api": ("api",),
}
OPERATOR = "user copyrisk-operator on resetpass allkeys allchannels +@all -@dangerous +info"


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)


def needs(*programs: str) -> None:
    """Skip a test without some programs, but for in CI, where they are installed."""
    for program in programs:
        if shutil.which(program) is None:
            assert os.environ.get("CI") != "true", f"{program} is not installed"
            pytest.skip(f"needs {program}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def bash(script: str, folder: Path, **given: object) -> str:
    """What a script prints, run in a folder with the installation's programs first on the path."""
    environ = environment() | {name: str(value) for name, value in given.items()}
    environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


# ---- the site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as CI builds it."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environ = environment() | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr, done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=\"?([^\"> ]+)", page.read_text())
        strangers = [place for place in loaded if re.match(r"(https?:)?//", place)]
        assert not strangers, f"{page.name}: {strangers}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(https?:)?//", style.read_text()), style.name


@pytest.mark.slow
def test_the_site_has_what_is_made_from_the_code(site: Path) -> None:
    commands = (site / "cli.html").read_text()
    assert all(f'id="{command}"' in commands for command in COMMANDS)
    assert all(f"{role}" in commands for role in ROLES)
    reference = (site / "reference.html").read_text()
    assert all(f'id="copyrisk._core.{name}"' in reference for name in ("value_accounts", "judge_quotes"))
    assert all(f"<code>{code.name}</code>" in reference for code in (*RowCode, *SizeCode))
    routes = (site / "http.html").read_text()
    assert all(f"<code>{route}</code>" in routes for route in ("POST /api/orders/instant/execute", "GET /api/stream"))
    found = json.loads((site / "search" / "search_index.json").read_text())
    assert any("margin_level" in entry["text"] for entry in found["docs"])


@pytest.mark.slow
def test_every_page_is_in_the_navigation_and_every_anchor_exists(site: Path) -> None:
    """Links between pages are mkdocs' to check; this holds its result, anchors in the same page included."""
    ids = {
        page.relative_to(site).as_posix(): set(re.findall(r'\bid="([^"]+)"', page.read_text()))
        for page in site.rglob("*.html")
    }
    for name in ids:
        if name == "404.html":
            continue
        for link in re.findall(r'<a\b[^>]*?\bhref="([^"]+)"', (site / name).read_text()):
            if re.match(r"[a-z]+:", link):
                continue
            target, _, anchor = unquote(link).partition("#")
            other = (Path(name).parent / target).as_posix() if target else name
            if other == ".":
                other = "index.html"
            assert (site / other).exists(), f"{name}: {link}"
            assert not anchor or other not in ids or anchor in ids[other] or anchor == "__skip", f"{name}: {link}"


def test_links_to_files_are_not_broken() -> None:
    """Of the pages and the README as they are read in the repository."""
    for page in (*DOCS.glob("*.md"), ROOT / "README.md"):
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for link in re.findall(r"\]\(([^)#\s]+)", text):
            if re.match(r"[a-z]+:", link) or link in ("cli.md", "http.md"):
                continue
            assert (page.parent / link).exists(), f"{page.name}: {link}"


# ---- examples


def test_the_examples_of_the_kernels_print_what_the_page_says() -> None:
    code = "\n".join(blocks("python.md", "python"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(blocks("python.md", "text"))


def test_the_examples_of_the_formulas_are_right() -> None:
    examples = doctest.DocTestParser().get_doctest("\n".join(blocks("formulas.md", "pycon")), {}, "formulas", None, 0)
    said: list[str] = []
    found = doctest.DocTestRunner(verbose=False).run(examples, out=said.append)
    assert found.attempted > 15
    assert found.failed == 0, "".join(said)


def test_published_figures_are_those_that_are_tested() -> None:
    """What the page quotes is what `test_published` computes, from the source that it names."""
    cases = {case["id"]: case for case in json.loads((ROOT / "tests/data/published.json").read_text())["cases"]}
    rows = re.findall(r"^\| ([A-Z]-\d+\w?) \| \[.*?\]\((.*?)\) \|.*\| `(\w+)` (\S+) \|$", _page("formulas.md"), re.M)
    assert len(rows) > 10
    for name, source, figure, value in rows:
        assert cases[name]["source"] == source, name
        assert cases[name]["expected"][figure][0] == value, name


def _page(name: str) -> str:
    return (DOCS / name).read_text()


@pytest.mark.slow
def test_the_first_run(tmp_path: Path) -> None:
    needs("redis-server", "redis-cli")
    port = free_port()
    steps = blocks("first-run.md", "bash")
    script = "\n".join(f"echo == {number}\n{step}" for number, step in enumerate(steps)).replace("6399", str(port))
    ready = "until redis-cli -p $PORT PING 2>&1 | grep -q PONG; do sleep 0.1; done\n"
    script = script.replace("export COPYRISK_REDIS_URL", f"{ready}export COPYRISK_REDIS_URL", 1)
    ended = f"trap 'kill $(jobs -p) 2>/dev/null; redis-cli -p {port} SHUTDOWN NOSAVE >/dev/null 2>&1 || true' EXIT\n"
    said = bash(f"set -m\n{ended}{script}", tmp_path, PORT=port)
    parts = re.split(r"^== \d+$", said, flags=re.MULTILINE)[1:]
    assert "server: ok, Redis" in parts[0]
    assert '"order_price":"1.0846"' in re.sub(r"\s|\\", "", parts[2])
    assert '"margin":"1084.60"' in re.sub(r"\s|\\", "", parts[2])
    portfolio = parts[3].split()
    table = re.findall(r"^\| `(\w+)` \| `?([\w.]+)`? \|", _page("first-run.md"), re.MULTILINE)
    assert len(table) == 5
    for field, value in table:
        assert portfolio[portfolio.index(field) + 1] == value, field
    assert parts[4].split()[1:] == ["10490.0", "degraded", "quote_missing:EURUSD"]


# ---- systemd, users, TLS


def units(folder: Path) -> list[Path]:
    """The unit files, with this installation's program in place of that of the page."""
    program = str(Path(sys.executable).parent / "copyrisk-run")
    made = []
    for path in sorted((DOCS / "systemd").iterdir()):
        (folder / path.name).write_text(path.read_text().replace("/opt/copyrisk/bin/copyrisk-run", program))
        made.append(folder / path.name)
    return made


def verified(folder: Path) -> str:
    """What systemd says of an instance of each."""
    names = [path.name.replace("@.", "@1.") if "workers" in path.name else path.name for path in units(folder)]
    names = [name.replace("copyrisk@.", "copyrisk@daemon.") for name in names]
    words = ["systemd-analyze", "verify", "--man=no", *(f"./{name}" for name in names)]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False).stderr


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    needs("systemd-analyze")
    assert verified(tmp_path) == ""


def test_units_start_roles_that_there_are() -> None:
    named = re.search(r"copyrisk@\{([a-z,]+)\}", _page("operations.md"))
    assert named is not None
    assert set(named[1].split(",")) | {"workers"} <= set(ROLES)
    assert set(USERS) == set(named[1].split(",")) | {"workers"}


def test_the_file_of_users_says_what_the_page_of_settings_does() -> None:
    lines = ["user default off resetpass resetkeys resetchannels -@all"]
    for user, rows in USERS.items():
        lines.append(f"user copyrisk-{user} on resetpass resetkeys resetchannels -@all {' '.join(rules_of(*rows))}")
    assert (DOCS / "redis" / "users.acl").read_text().splitlines() == [*lines, OPERATOR]


def rules_of(*rows: str) -> list[str]:
    """Rules of some rows of docs/settings.md: keys, channels, commands."""
    found: set[str] = set()
    for name in ("connecting", *rows, "any, with metrics"):
        [row] = [line for line in _page("settings.md").splitlines() if line.startswith(f"| {name} |")]
        quoted = [rule for rule in re.findall(r"`([^`]+)`", row) if rule[0] in "~&+"]
        found.update(rule for rules in quoted for rule in rules.replace("\\|", "|").split())
    return [rule for kind in "~&+" for rule in sorted(found) if rule[0] == kind]


@contextmanager
def guarded_server(folder: Path) -> Iterator[tuple[str, Any]]:
    """Redis with TLS and the users of the page, made as the page says; its port, and a client that may do all."""
    words = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout key.pem -out ca.pem -subj /CN=localhost"
    bash(f"{words} -addext subjectAltName=DNS:localhost 2>/dev/null", folder)
    shutil.copy(DOCS / "redis" / "users.acl", folder)
    port = free_port()
    [script] = [block for block in blocks("operations.md", "bash") if "openssl rand" in block]
    bash(script, folder, HOST=f"localhost:{port}", QUERY=f"?ssl_ca_certs={folder}/ca.pem")
    with (folder / "users.acl").open("a") as file:
        file.write("user office on nopass allkeys allchannels +@all\n")
    tls = f"--tls-port {port} --tls-cert-file {folder}/cert.pem --tls-key-file {folder}/key.pem".replace(
        "cert.pem", "ca.pem"
    )
    more = f"--tls-ca-cert-file {folder}/ca.pem --tls-auth-clients no --bind 127.0.0.1 --port 0 --save".split()
    server = subprocess.Popen(
        [str(REDIS), *tls.split(), *more, "", "--aclfile", str(folder / "users.acl"), "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
    )
    client = redis.Redis.from_url(f"rediss://office:x@localhost:{port}/0?ssl_ca_certs={folder}/ca.pem")
    try:
        until(lambda: _answers(client))
        yield str(port), client
    finally:
        client.close()
        server.kill()
        server.wait()


def _answers(client: Any) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def of_file(path: Path) -> dict[str, str]:
    """The variables of an environment file."""
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


@pytest.mark.slow
def test_each_role_works_as_its_user_over_tls(tmp_path: Path) -> None:
    """Password, TLS and permissions as the page sets them up, one order through all of it; nothing is refused."""
    needs("redis-server", "openssl")
    with guarded_server(tmp_path) as (_, client):
        BackOffice(client).eurusd_account("live:1", sending_orders="rock", is_active="1")
        ports = {role: free_port() for role in USERS}
        provider = free_port()
        more = {
            "MARKET_ALWAYS_OPEN": "true",
            "DATABASE_URL": f"sqlite:///{tmp_path}/db",
            "PROVIDER_URL": f"tcp://127.0.0.1:{provider}",
            "AUDIT_FOLDER": str(tmp_path / "audit"),
            "API_PORT": free_port(),
            "API_SECRET": "of this test alone, and of 32 bytes or more",
        }
        environ = environment(**more)
        operator = environ | of_file(tmp_path / "operator.env")
        subprocess.run([*COMMAND, "database", "migrate"], env=operator, check=True, capture_output=True)
        told = (tmp_path / "log").open("wb")
        simulator = ["--role", "simulator"]
        running = [
            subprocess.Popen(
                [*COMMAND, *simulator], env=operator | {"COPYRISK_SIMULATOR_PORT": str(provider)}, stderr=told
            )
        ]
        try:
            for role, port in ports.items():
                own = environ | of_file(tmp_path / f"{role}.env")
                words = [*COMMAND, "--role", role, "--metrics", str(port)]
                running.append(subprocess.Popen(words, env=own, stderr=told))
            for port in ports.values():
                until(lambda port=port: Endpoint(port).parts()[0] == 200, 60)
            BackOffice(client).quote("EURUSD", "1.0845", "1.08455", now_ms())
            entry = {"type": "open", "user_type": "live", "user_id": "1", "symbol": "EURUSD", "order_type": "BUY"}
            client.xadd("copyrisk:commands", entry | {"order_quantity": "0.1", "order_id": "N"})
            until(lambda: client.xlen("copyrisk:events") and not client.xlen("copyrisk:history"), 30)
            [(_, event)] = client.xrange("copyrisk:events")
            assert event[b"code"] == b"ok"
            done = subprocess.run([*COMMAND, "kill", "all", "--yes"], env=operator, capture_output=True, check=False)
            assert done.returncode == 0, done.stderr
        finally:
            for process in running:
                process.terminate()
            codes = [process.wait(30) for process in running]
            told.close()
        refused = {(said["username"], said["reason"], said["object"]) for said in client.acl_log()}
        assert {one for one in refused if one[2] not in (b"client|setinfo", "client|setinfo")} == set()
        assert codes == [0] * len(running), (tmp_path / "log").read_text()[-3000:]


def _ask_everything(caller: Caller) -> None:
    """Each kind of route, with an order, a relationship and what can be read of them."""
    live, master = {"user_type": "live", "user_id": "1"}, {"user_type": "strategy_provider", "user_id": "M"}
    placed = {"symbol": "EURUSD", "order_type": "BUY", "order_quantity": "0.1"}
    order = data(caller.post("/api/orders/instant/execute", live | placed, key="k1"))["order_id"]
    data(caller.post("/api/copy-trading/orders/strategy-provider", master | placed))
    data(caller.post("/api/copy-trading/follow", {"master_id": "M", "follower_id": "F", "investment": "500"}))
    data(caller.send("PUT", "/api/copy-trading/accounts/F", {"multiplier": "2"}))
    for act in ("pause", "resume"):
        data(caller.post(f"/api/copy-trading/accounts/F/{act}"))
    until(lambda: caller.get("/api/risk/ladder/EURUSD").status_code == 200)  # the desk has seen the order
    whose = "user_type=live&user_id=1"
    for path in (
        *("portfolios/live/1", f"orders?{whose}", f"orders/{order}?{whose}", f"orders/answers/k1?{whose}"),
        *("copy-trading/accounts/F", "copy-trading/masters/M/followers", "copy-trading/relationships/check"),
        *("cascades", "audit", "accounts/live/1/history", "risk/summary", "risk/ladder", "risk/ladder/EURUSD"),
    ):
        data(caller.get(f"/api/{path}"))
    data(caller.post("/api/risk/what-if", {"moves": {"EURUSD": "-5"}}, key=None))
    data(caller.send("DELETE", "/api/copy-trading/accounts/F"))


@pytest.mark.slow
def test_the_api_works_as_its_user(redis_server: Any) -> None:
    """It may do what docs/settings.md says, needs no more, and what it answers is right."""
    desk = Desk(redis_server)
    desk.account("live:1")
    desk.account("strategy_provider:M", balance="100000")
    own = desk.server
    with working(desk):
        engine = make_engine(desk.new_client(), desk.settings, acts=False)
        engine.tick()
        engine.close()
        limit(desk, "api")
        with served(desk, api__desk=True, api__desk_refresh_ms=200, valuation__quote_max_age_ms=0) as house:
            desk.server = own  # keys are made by operators
            caller = house.caller()
            until(lambda: caller.get("/api/risk/summary").status_code == 200, 20)
            _ask_everything(caller)
    refused = {(seen["reason"], seen["object"]) for seen in desk.client.acl_log()}
    desk.client.acl_log_reset()
    assert refused - {("command", "client|setinfo"), ("command", "subscribe")} == set()
    desk.close()


# ---- backup, integration


@contextmanager
def kept_server(folder: Path) -> Iterator[EmbeddedServer]:
    """Debian's server, whose snapshots lie in a folder."""
    with EmbeddedServer.start(REDIS, extra_args=["--dir", str(folder), "--dbfilename", "dump.rdb"]) as server:
        yield server


def _office(url: str) -> BackOffice:
    return BackOffice(redis.Redis.from_url(url))


def _cli(url: str, *words: str, **given: object) -> "subprocess.CompletedProcess[str]":
    environ = environment(MARKET_ALWAYS_OPEN="true", **given)
    return subprocess.run(
        [*COMMAND, "--redis", url, *words], env=environ, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.slow
def test_backup_and_restore(tmp_path: Path) -> None:
    """The page's own steps: what was there at the backup is there again, what came later is not, the trail says so."""
    needs("redis-server", "redis-cli")
    data, audit, backup = tmp_path / "data", tmp_path / "audit", tmp_path / "backup"
    for folder in (data, backup):
        folder.mkdir()
    save, look = [block for block in blocks("operations.md", "bash") if "$REDIS" in block]
    with kept_server(data) as server:
        office = _office(server.url)
        office.eurusd_account("live:1")
        assert _cli(server.url, "kill", "symbol:XAUUSD", "--yes").returncode == 0
        assert _cli(server.url, "--ticks", "2", AUDIT_FOLDER=audit).returncode == 0
        given = {"DATA": data, "BACKUP": backup, "AUDIT": audit}
        said = bash(
            save.replace("-u ", "-s ").replace('"$REDIS" audit', '"$URL" audit'), tmp_path, **given, **_at(server)
        )
        assert re.search(r"\d+:[0-9a-f]{64}", said)
        office.account("live:2")
        assert _cli(server.url, "kill", "symbol:EURUSD", "--yes").returncode == 0
        assert _cli(server.url, "--ticks", "2", AUDIT_FOLDER=audit).returncode == 0
    shutil.copy(backup / "dump.rdb", data)
    with kept_server(data) as server:
        office = _office(server.url)
        assert office.client.exists("user:{live:1}:config", "user:{live:2}:config") == 1
        bash(look.replace('"$REDIS"', '"$URL"'), tmp_path, AUDIT=audit, **_at(server))
        assert set(office.client.hkeys("copyrisk:kills")) == {b"symbol:XAUUSD", b"all"}
        found = _cli(server.url, "audit", "verify", "--folder", str(audit))
        assert "differs" in found.stdout + found.stderr or "stream_behind" in found.stdout + found.stderr
        office.quote("EURUSD", "1.0845", "1.08455")
        assert _cli(server.url, "--ticks", "3", AUDIT_FOLDER=audit).returncode == 0
        assert _cli(server.url, "audit", "verify", "--folder", str(audit)).returncode == 0
        assert office.portfolio("live:1")["calc_status"] == "ok"


def _at(server: EmbeddedServer) -> Mapping[str, str]:
    """How a script reaches a server: `redis-cli -s` and `--redis`."""
    return {"REDIS": server.url.removeprefix("unix://"), "URL": server.url}


def _compare_tool() -> str:
    [tool] = [block for block in blocks("integration.md", "python") if "calc_status" in block]
    return tool


@pytest.mark.slow
def test_figures_are_compared_on_a_copy(tmp_path: Path) -> None:
    """Steps 1 and 2 of the integration: a copy of the live server, its figures against ours; the live one untouched."""
    needs("redis-server", "redis-cli")
    (tmp_path / "compare.py").write_text(_compare_tool())
    (tmp_path / "copy").mkdir()
    (tmp_path / "data").mkdir()
    copy, compare = [block for block in blocks("integration.md", "bash") if "6398" in block or "compare.py" in block]
    port = free_port()
    copied = copy.replace("6398", str(port)).replace('-u "$LIVE"', '-s "$LIVE"')
    end = f"\nredis-cli -p {port} SHUTDOWN NOSAVE || true"
    with kept_server(tmp_path / "data") as live:
        office = _office(live.url)
        office.eurusd_account("live:1")
        office.account("live:2")
        for account, equity in (("live:1", "10050.0"), ("live:2", "9000.0")):
            figures = {"equity": equity, "used_margin": "1084.55", "free_margin": "8965.45", "margin_level": "926.65"}
            office.client.hset("user_portfolio:{" + account + "}", mapping={**figures, "open_pnl": "50.0"})
        before = office.client.dbsize(), office.portfolio("live:1")
        compared = compare.rstrip() + " || true"
        said = bash(copied + compared + end, tmp_path, LIVE=live.url.removeprefix("unix://"))
        assert (office.client.dbsize(), office.portfolio("live:1")) == before
    assert "user_portfolio:{live:1}" not in said
    assert "user_portfolio:{live:2}  ok" in said
    assert "equity 9000.0 -> 10000" in said
    assert "2 portfolios, 1 differ or are not known" in said


def test_a_deposit_loses_nothing(bundled_server: Any) -> None:
    """The page's way of booking, with somebody else's result in between."""
    [code] = [block for block in blocks("integration.md", "python") if "def deposit" in block]
    said: dict[str, Any] = {}
    exec(code, said)
    with bundled_server.client() as client, bundled_server.client() as other:
        key = "user:{live:1}:config"
        client.hset(key, "wallet_balance", "100.10")
        seen: list[bytes] = []
        hget = redis.client.Pipeline.hget

        def meanwhile(pipe: Any, *words: Any) -> Any:
            found = hget(pipe, *words)
            if not seen:
                seen.append(found)
                other.hset(key, "wallet_balance", "150.10")
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(redis.client.Pipeline, "hget", meanwhile)
            assert str(said["deposit"](client, "live:1", said["decimal"].Decimal("0.20"))) == "150.30"
        assert (seen, client.hget(key, "wallet_balance")) == ([b"100.10"], b"150.30")
