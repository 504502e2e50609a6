"""The desk's page in a real browser: it is alive, honest about what is old or unknown, and works without a mouse."""

import asyncio
import gzip
import os
import re
import shutil
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from copyrisk.api.app import make_app
from copyrisk.api.pages import POLICY, static_routes
from copyrisk.api.tokens import make_token
from copyrisk.daemon import make_engine
from copyrisk.embedded import EmbeddedServer
from tests.api_house import ALL_SCOPES, House, served, working
from tests.conftest import Server
from tests.page_house import TOKEN, PageHouse, cascade, entry, page_house
from tests.trading import Desk, until

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from playwright.sync_api import Browser, Page, expect, sync_playwright

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

STATIC = Path(__file__).parent.parent / "src" / "copyrisk" / "api" / "static"
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PAGES = {
    "overview": "#/",
    "ladder": "#/ladder",
    "symbol": "#/ladder/EURUSD",
    "what if": "#/what-if?EURUSD=-2.5",
    "audit": "#/audit",
    "account": "#/account/live/17",
    "cascade": "#/cascade/c-17-1",
}
WIDE, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


# ---- files, without a browser


def got(path: str, method: str = "GET", **headers: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=make_app([static_routes()]))
        async with httpx.AsyncClient(transport=transport, base_url="http://desk") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(ask())


def test_every_file_of_the_page_is_served_and_asked_about_again() -> None:
    for path in ("/", *(f"/static/{file.name}" for file in STATIC.iterdir() if file.name != "index.html")):
        answer = got(path)
        assert answer.status_code == 200 and "charset=utf-8" in answer.headers["content-type"], path
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["cache-control"] == "no-cache"
        again = got(path, **{"If-None-Match": f'"other", W/{answer.headers["etag"]}'})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", answer.headers["etag"])
        assert got(path, "HEAD").content == b""
        assert got(path, "POST").status_code == 405


def test_files_are_compressed_for_who_reads_that() -> None:
    plain, packed = got("/static/desk.css", **{"Accept-Encoding": "identity"}), got("/static/desk.css")
    assert "content-encoding" not in plain.headers and packed.headers["content-encoding"] == "gzip"
    assert plain.content == packed.content == (STATIC / "desk.css").read_bytes()
    assert plain.headers["etag"] != packed.headers["etag"] and packed.headers["vary"] == "Accept-Encoding"
    assert int(packed.headers["content-length"]) < len(plain.content) / 2
    assert "content-encoding" not in got("/static/desk.css", **{"Accept-Encoding": "br, gzip;q=0"}).headers


def test_the_chart_library_is_the_one_that_is_installed() -> None:
    import plotly

    answer = got("/static/plotly.js")
    assert answer.headers["content-encoding"] == "gzip" and int(answer.headers["content-length"]) < 2_000_000
    assert answer.content == (Path(plotly.__file__).parent / "package_data" / "plotly.min.js").read_bytes()
    assert gzip.compress(answer.content[:1_000])  # httpx has unpacked it


@pytest.mark.parametrize("name", ["nothing.js", "index.html", "..%2fpages.py", "%2e%2e/pages.py", "", "desk.js%00"])
def test_there_is_no_way_to_other_files(name: str) -> None:
    answer = got(f"/static/{name}")
    assert (answer.status_code, answer.json()["error_code"]) == (404, "not_found")


def test_the_page_is_whole_and_nothing_comes_from_elsewhere() -> None:
    names = {file.name for file in STATIC.iterdir()}
    for file in STATIC.iterdir():
        said = file.read_text()
        assert {Path(one).name for one in re.findall(r'(?:from|import) "(\./[^"]+)"', said)} <= names
        assert {Path(one).name for one in re.findall(r'(?:href|src)="(/static/[^"]+)"', said)} <= names
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", said), file.name


def test_no_code_parses_markup() -> None:
    for file in STATIC.glob("*.js"):
        bad = r"innerHTML|outerHTML\s*=[^=]|insertAdjacentHTML|document\.write|\beval\(|Function\(|DOMParser|srcdoc"
        assert not re.search(bad, file.read_text()), file.name


# ---- a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        message = "the desk's page is tested in Chromium, which is not installed (Debian: apt-get install chromium)"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, headless=True, args=list(FLAGS))
        yield launched
        launched.close()


@pytest.fixture
def house() -> Iterator[PageHouse]:
    with page_house() as running:
        yield running


Opening = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser, house: PageHouse) -> Iterator[Opening]:
    """Opens the page, signed in; whatever it throws, or writes as an error, fails the test."""
    faults: list[str] = []
    contexts: list[Any] = []

    def open_page(
        where: str = "#/", *, charts: bool = False, token: str = TOKEN, clock: bool = False, **given: Any
    ) -> Page:
        context = browser.new_context(**{"viewport": WIDE, "reduced_motion": "reduce", **given})
        contexts.append(context)
        context.set_default_timeout(10_000)
        page = context.new_page()
        page.on("pageerror", lambda fault: faults.append(str(fault)))
        page.on("console", lambda said: faults.append(said.text) if is_fault(said) else None)
        if not charts:
            page.route("**/static/plotly.js", lambda route: route.abort())
        if clock:
            page.clock.install()
        page.goto(f"{house.url}/#token={token}" if token else f"{house.url}/")
        if token == TOKEN:
            expect(page.locator("body")).to_have_attribute("data-live", "live")
            if where != "#/":
                go(page, where)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


def is_fault(said: Any) -> bool:
    """Errors, but for answers that refuse, and the style sheet for maps, of which the page has none, in plotly."""
    expected = ("Failed to load resource", "Applying inline style violates")
    return said.type == "error" and not any(words in said.text for words in expected)


def go(page: Page, where: str) -> None:
    page.evaluate("where => { location.hash = where; }", where)


def tile(page: Page, label: str) -> Any:
    return page.locator(".tile", has=page.get_by_text(label, exact=True)).locator("dd")


# ---- who is there


def test_the_token_leaves_the_address_and_stays_in_the_tab(opened: Opening, house: PageHouse) -> None:
    page = opened()
    assert page.url == f"{house.url}/#/"
    assert page.evaluate("sessionStorage.getItem('copyrisk.token')") == TOKEN
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    page.reload()
    expect(tile(page, "accounts")).to_have_text("1,000")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Access token")).to_be_focused()
    assert page.evaluate("sessionStorage.length") == 0
    expect(page.locator("main")).not_to_contain_text("1,000")


@pytest.mark.slow
def test_a_token_that_is_refused_leads_back_with_the_reason(opened: Opening, house: PageHouse) -> None:
    page = opened(token="old-token")
    expect(page.get_by_role("alert").filter(has_text="expired_token")).to_be_visible()
    page.get_by_label("Access token").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(tile(page, "accounts")).to_have_text("1,000")
    house.tokens.clear()  # it ends while the stream runs
    expect(page.get_by_role("alert").filter(has_text="expired_token")).to_be_visible()
    expect(page.locator("#bar")).to_be_hidden()


@pytest.mark.slow
def test_who_may_see_some_accounts_only_is_told_so(opened: Opening, house: PageHouse) -> None:
    house.is_limited, house.has_trail = True, False
    page = opened()
    expect(page.get_by_label("Warnings and closes", exact=True)).to_contain_text("None since this page was opened")
    expect(page.locator("main")).to_contain_text("may see some accounts only")
    house.entries.append(entry(121, "warning", "live:17", "level_at_or_below_warning"))
    expect(page.get_by_role("row", name=re.compile("live:17\\b"))).to_be_visible()


# ---- the overview


def test_the_overview_is_alive(opened: Opening, house: PageHouse) -> None:
    page = opened()
    for label, text in {"healthy": "759", "warning": "14", "critical": "2", "unknown": "3"}.items():
        expect(tile(page, label)).to_have_text(text)
    expect(tile(page, "open P&L, USD")).to_have_text("\u2212211,039")
    expect(page.locator("#connection")).to_have_text("live")
    expect(page.get_by_text("The chart library is not installed").first).to_be_visible()  # it is kept away here
    expect(page.locator("#closest tbody tr")).to_have_count(25)
    first = page.locator("#closest tbody tr").first
    expect(first).to_contain_text("critical")
    expect(first).to_contain_text("below critical")
    by_type = house.summary["accounts"]["by_type"]
    house.summary["accounts"] = {"total": 1001, "by_type": {**by_type, "live": {**by_type["live"], "critical": 9}}}
    house.summary["cascades"] = [cascade("c-17-1", "17", 1000, 900, 2)]
    expect(tile(page, "critical")).to_have_text("10")
    expect(page.get_by_text("900 of 1,000")).to_be_visible()
    assert page.get_by_role("progressbar").first.evaluate("bar => bar.value / bar.max") == pytest.approx(0.902)
    house.entries.append(entry(121, "liquidation", "live:17", "level_at_or_below_critical"))
    newest = page.locator("#news tbody tr").first
    expect(newest).to_contain_text("live:17")
    expect(newest).to_contain_text("level at or below critical")  # as it says nothing else


WORDS = {
    "no margin, equity 0.00 USD": {"figures": {"used_margin_usd": 0, "level_pct": None, "equity_usd": 0}},
    "level unknown, equity unknown USD": {"figures": {"level_pct": None, "equity_usd": None, "used_margin_usd": 5}},
    "to close A 0.50 lots, B": {"plan": [{"order_id": "A", "lots": "0.5"}, {"order_id": "B", "lots": None}]},
    "2 orders, 0.30 lots, result \u22120.30 USD: A closed 0.10 lots, result \u22120.10 USD; "
    "B closed 0.20 lots, result \u22120.20 USD": {
        "results": [
            {"order_id": name, "result": "closed", "lots": lots, "result_usd": f"-{lots}"}
            for name, lots in (("A", "0.1"), ("B", "0.2"))
        ]
    },
    "A market closed": {"results": [{"order_id": "A", "result": "market_closed"}]},
    "part 2 of 3": {"part": 2, "of": 3, "text": "{"},
    "too long to be shown: copyrisk-run audit show has it": None,
    "text 7": {"text": 7, "figures": [1], "plan": "x", "results": {"a": 1}, "followers": None},
    "": {},
}


def test_what_happened_before_is_told_first_and_each_once(opened: Opening, house: PageHouse) -> None:
    house.entries.append(entry(121, "replication", "live:17", "decided"))  # none of the feed's kinds
    page = opened()
    rows = page.locator("#news tbody tr")
    expect(rows).to_have_count(9)
    keys = "[...document.querySelectorAll('#news tbody tr')].map(row => Number(row.dataset.key))"
    assert page.evaluate(keys) == list(range(120, 111, -1))
    expect(rows.nth(0)).to_contain_text("level 9.31 % (warning 50 %, critical 10 %), equity 102.44 USD; to close O7")
    expect(rows.nth(2)).to_contain_text("18 closed, 5 had none, 1 failed; 31 copies, 12.40 lots, result \u22121,204.75")
    expect(rows.nth(4)).to_contain_text("O7 closed 0.50 lots at 1.08321, result \u2212120.50 USD; O8 cancelled")
    house.entries.append(house.entries[119])  # as if it came on the stream as well
    house.entries.append(entry(122, "warning", "live:5", "level_at_or_below_warning"))
    expect(rows.first).to_contain_text("live:5")
    assert page.evaluate(keys) == [122, *range(120, 112, -1)]
    below = page.get_by_label("Tick latency", exact=True).first.bounding_box()
    for title in ("Cascades", "Warnings and closes"):
        box = page.get_by_label(title, exact=True).bounding_box()
        assert below and box and box["y"] + box["height"] <= below["y"]
    ask = "said => import('/static/entry_words.js').then(words => words.inWords({ kind: 'toString', cause: '', said }))"
    assert [page.evaluate(ask, said) for said in WORDS.values()] == list(WORDS)


@pytest.mark.slow
def test_rows_keep_their_places_under_the_pointer(opened: Opening, house: PageHouse) -> None:
    page = opened()
    rows, note = page.locator("#closest tbody tr"), page.get_by_text("order held", exact=True)
    expect(rows).to_have_count(25)
    was = rows.evaluate_all("rows => rows.map(row => row.dataset.key)")
    rows.nth(1).hover()
    expect(note).to_be_visible()
    other = {**house.summary["closest"][0], "account": "live:new"}
    house.summary["closest"] = [other, *reversed(house.summary["closest"][1:])]
    house.summary["closest"][-1] = {**house.summary["closest"][-1], "margin_level_pct": 12.34}
    expect(rows.nth(1)).to_contain_text("12.34 %")  # figures go on
    expect(rows.nth(25)).to_contain_text("live:new")
    assert rows.evaluate_all("rows => rows.map(row => row.dataset.key)") == [*was, "live:new"]
    expect(rows.nth(0)).to_have_class("gone")  # its figures are not of now
    page.mouse.move(5, 5)
    expect(note).to_be_hidden()
    expect(rows).to_have_count(25)
    expect(rows.nth(0)).to_contain_text("live:new")
    rows.nth(3).focus()
    expect(note).to_be_visible()
    house.summary["closest"] = house.summary["closest"][::-1]
    house.summary["totals"]["open_pnl_usd"] = 7
    expect(tile(page, "open P&L, USD")).to_have_text("7")
    expect(rows.nth(0)).to_contain_text("live:new")
    aimed = rows.nth(3).get_attribute("data-key")
    expect(rows.nth(3)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text(str(aimed))


@pytest.mark.slow
def test_an_account_says_its_state_and_thresholds(opened: Opening, house: PageHouse) -> None:
    def fact(label: str) -> Any:
        return page.locator("main .facts div").filter(has=page.get_by_text(label, exact=True)).locator("dd")

    page = opened("#/account/live/17")
    expect(page.locator("main .state")).to_have_text("following")
    expect(fact("state")).to_have_text("not among the closest")
    expect(fact("warned at")).to_have_text("unknown")
    prices = page.locator("#orders tbody tr td:nth-child(6)")
    expect(prices).to_have_text(["1.08450", "2331.87", "1.26730"])  # bid, ask, and ask of what waits to be bought
    expect(page.locator("#orders tbody tr td:nth-child(5)").first).to_have_text("1.08580")
    house.summary["closest"][3] |= {"account": "live:17", "state": "warning", "warning_level_pct": 950.5}
    expect(fact("state")).to_have_text("warning")
    expect(fact("warned at")).to_have_text("950.5 %")
    expect(fact("closed out at")).to_have_text("10 %")
    house.portfolio.update(used_margin_usd=0.0, used_margin_executed_usd=0.0, margin_level_pct=None)
    expect(fact("margin level")).to_have_text("no margin")
    expect(fact("state")).to_have_text("no margin")
    house.portfolio.update(used_margin_usd=80.0, used_margin_executed_usd=80.0, margin_level_pct=9.5)
    go(page, "#/account/live/1296")  # was warned: what the trail says of its thresholds, and when that was
    house.summary["closest"] = []
    expect(fact("warned at")).to_contain_text("50 % as of")
    expect(fact("state")).to_have_text("critical")


def test_what_is_not_known_is_never_zero(opened: Opening, house: PageHouse) -> None:
    house.summary["tick"] = None
    line = dict.fromkeys(house.summary["closest"][0]) | {"account": "live:1", "state": "unknown"}
    house.summary["closest"] = [line]
    house.summary["totals"] = dict.fromkeys(house.summary["totals"])
    house.summary["replication"] = dict.fromkeys(house.summary["replication"])
    house.summary["cascades"] = house.summary["unknown"] = None
    page = opened()
    for title in ("Cascades", "Unknown, and why"):
        expect(page.get_by_label(title, exact=True).locator("p.none").first).to_have_text("unknown")
    for label in ("equity, USD", "used margin, USD", "open P&L, USD"):
        expect(tile(page, label)).to_have_text("unknown")
    expect(page.locator("#closest tbody tr")).to_contain_text("unknown")
    figures = page.locator("#closest tbody td").all_inner_texts()
    assert len(figures) == 7 and not re.search(r"\d", "".join(figures))
    assert page.locator("#ages dd").all_inner_texts()[:3] == ["unknown"] * 3
    expect(page.locator("#alarms")).to_contain_text("No tick of the daemon is known")


def test_what_outsiders_wrote_is_only_ever_text(opened: Opening, house: PageHouse) -> None:
    bad = "<img src=x onerror=\"document.title='taken'\"><script>1</script>"
    house.summary["unknown"] = {bad: 2}
    house.summary["halted"] = [bad]
    house.summary["cascades"] = [cascade(bad, bad, 2, 1, 0)]
    house.summary["closest"][0]["account"] = f"live:{bad}"
    house.entries.append(entry(121, bad, bad, bad, what=bad))
    page = opened()
    house.entries.append(entry(122, bad, f"live:{bad}", bad, what=bad))
    expect(page.locator("#alarms")).to_contain_text(bad)
    expect(page.get_by_role("row", name=bad).first).to_be_visible()
    go(page, "#/audit")
    expect(page.locator("#entries")).to_contain_text(bad)
    go(page, f"#/account/{bad}/1")
    go(page, "#/cascade/" + bad.replace("/", "%2F"))
    assert page.locator("main img, main script, #alarms img").count() == 0 and page.title() != "taken"


# ---- old figures


def test_silence_is_said_loudly_and_figures_are_greyed(opened: Opening, house: PageHouse) -> None:
    page = opened(clock=True)
    house.is_silent = True
    until(lambda: house.silent_steps > 2)
    page.clock.run_for(1_000)  # what was under way has come
    page.clock.run_for(6_000)
    assert page.locator("body").get_attribute("data-live") == "old"
    expect(page.locator("#alarms")).to_contain_text("Nothing has arrived for more than 5 s")
    assert float(page.locator(".tiles").evaluate("node => getComputedStyle(node).opacity")) < 0.6
    house.is_silent = False
    page.clock.run_for(1_000)
    expect(page.locator("body")).to_have_attribute("data-live", "live")
    expect(page.locator("#alarms")).to_be_empty()


@pytest.mark.slow
def test_a_lost_connection_is_made_again_where_it_was(opened: Opening, house: PageHouse) -> None:
    page = opened()
    house.is_cut = True
    expect(page.locator("#alarms")).to_contain_text("Connection lost")
    house.entries.append(entry(121, "warning", "live:17", "level_at_or_below_warning"))
    house.is_cut = False
    expect(page.locator("body")).to_have_attribute("data-live", "live")
    expect(page.locator("#alarms")).to_be_empty()
    assert house.last_ids == [None, "120.0-0"]


@pytest.mark.slow
def test_an_old_book_a_silent_daemon_and_halts_are_said(opened: Opening, house: PageHouse) -> None:
    page = opened()
    house.summary["halted"] = ["symbol:XAUUSD", "master:17"]
    house.summary["tick"] = {**house.summary["tick"], "age_ms": 61_000}
    expect(page.locator("#alarms")).to_contain_text("Halted by the kill switch: symbol:XAUUSD, master:17")
    expect(page.locator("#alarms")).to_contain_text("has not ticked for more than 5 s")
    expect(page.locator("#connection")).to_have_text("live, but no ticks")
    for name in ("accounts", "totals", "histogram", "closest", "unknown"):
        house.summary[name] = None
    house.summary["book_age_ms"] = 30_000
    expect(page.locator("#alarms")).to_contain_text("The desk's book is old")
    expect(tile(page, "healthy")).to_have_text("unknown")
    for title in ("Closest to their thresholds", "Unknown, and why"):  # nothing is known is not: there is none
        expect(page.get_by_label(title, exact=True).locator("p.none").first).to_have_text("unknown")


# ---- without a mouse


def test_the_page_works_by_keyboard(opened: Opening, house: PageHouse) -> None:
    page = opened()
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.locator("#closest tbody tr").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#closest tbody tr").nth(2)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("strategy_provider:1074")
    titles = {"gl": "Liquidation ladder", "gw": "What if", "ga": "Audit", "go": "Overview"}
    for keys, title in titles.items():  # never into a field, where the next keys would be text
        page.keyboard.type(keys)
        expect(page.locator("h1")).to_have_text(title)
        expect(page.locator("h1")).to_be_focused()
    page.keyboard.press("/")
    page.keyboard.type("demo:9")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("demo:9")
    page.keyboard.press("/")
    page.keyboard.type("nobody:9")
    page.keyboard.press("Enter")
    expect(page.locator("#find-said")).to_contain_text("No account: nobody:9")


@pytest.mark.slow
def test_focus_can_be_seen(opened: Opening) -> None:
    page = opened()
    for _ in range(14):
        page.keyboard.press("Tab")
        style = page.evaluate(
            "(({outlineStyle, outlineWidth}) => [outlineStyle, outlineWidth])(getComputedStyle(document.activeElement))"
        )
        assert style[0] != "none" and float(style[1].removesuffix("px")) >= 1, page.evaluate(
            "document.activeElement.outerHTML"
        )


# ---- ladder, what-if, audit, account


def has_points(chart: Any, count: int) -> bool:
    return bool(chart.evaluate("node => node.data[0].x.length") == count)


@pytest.mark.slow
def test_the_ladder_of_a_symbol(opened: Opening) -> None:
    page = opened("#/ladder", charts=True)
    page.get_by_role("link", name="EURUSD").click()
    expect(page.locator("#rungs tbody tr")).to_have_count(31)
    expect(page.locator("#rungs tbody tr").nth(15)).to_contain_text("now")
    expect(page.locator(".plot[data-drawn] .scatterlayer").first).to_be_attached()
    expect(page.locator("figure p").first).to_contain_text("\u22125.00 %: 55 warning, 32 critical")
    chart = page.get_by_role("group", name="accounts of EURUSD by price").locator(".plot")
    for button, rungs in {"±50 %": 15, "±5 %": 9}.items():
        page.get_by_role("button", name=button).click()
        until(partial(has_points, chart, rungs + 1))  # and the price of now
    falls, rises = ("node => node.data[0].line.shape", "node => node.data[1].line.shape")
    assert [chart.evaluate(one) for one in (falls, rises)] == ["hv", "vh"]  # between two rungs the farther one's count
    page.get_by_label("Symbol", exact=True).select_option("XAUUSD")
    expect(page.locator("h1")).to_have_text("Ladder of XAUUSD")
    expect(page.locator(".facts")).to_contain_text("2331.42")
    expect(page.locator(".facts div").filter(has_text="wait for a closed market")).to_contain_text("1")
    go(page, "#/ladder/NOTHELD")
    expect(page.get_by_role("alert").filter(has_text="unknown_symbol")).to_be_visible()


@pytest.mark.slow
def test_a_what_if_by_keyboard(opened: Opening, house: PageHouse) -> None:
    page = opened("#/what-if")
    expect(page.locator("h1")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_label("Symbol")).to_be_focused()
    page.keyboard.type("eurusd")
    page.keyboard.press("Enter")
    page.keyboard.type("-2.5")
    page.keyboard.press("Enter")
    page.keyboard.type("XAUUSD")
    page.keyboard.press("Control+Enter")
    outcome = page.locator("#outcome")
    expect(outcome).to_contain_text("6 of 240 are listed")
    expect(outcome).to_contain_text("\u22121,282,109.42")
    expect(outcome.get_by_role("table", name="Accounts that would be closed out").locator("tbody tr")).to_have_count(4)
    assert page.url.endswith("#/what-if?EURUSD=-2.5&XAUUSD=-2")
    page.get_by_label("Move in percent").first.fill("nan")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert").filter(has_text="from -99 to 1000")).to_be_visible()
    page.get_by_label("Move in percent").first.fill("1")
    page.get_by_label("Symbol").first.fill("NOTHELD")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert").filter(has_text="unknown_symbol")).to_be_visible()
    expect(outcome).to_have_class(re.compile("old"))
    assert sum(path == "/api/risk/what-if" for path in house.asked) == 2


@pytest.mark.slow
def test_the_audit_is_searched_page_by_page(opened: Opening, house: PageHouse) -> None:
    page = opened("#/audit", timezone_id="America/New_York")
    expect(page.locator("#entries tbody tr")).to_have_count(50)
    page.get_by_role("button", name="Older").click()
    expect(page.locator("#entries tbody tr")).to_have_count(100)
    page.get_by_label("Kind").select_option("liquidation")
    page.locator("#audit-account").fill("live:1740")
    page.locator("#audit-from").fill("2020-01-01T00:00:00")
    page.keyboard.press("Enter")
    expect(page.locator("#audit-said")).to_contain_text("that is all")
    expect(page.locator("#older")).to_be_hidden()
    assert "kind=liquidation&account=live%3A1740&from_ms=1577854800000&limit=50" in house.asked[-1]
    page.get_by_text("JSON", exact=True).first.click()
    expect(page.locator("#entries pre").first).to_contain_text('"level_pct": 9.31')
    shown, utc = page.locator("#entries time").first.evaluate("node => [node.textContent, node.title]")
    assert utc.endswith("UTC") and shown[-8:-6] != utc[11:13]  # New York is never at UTC
    page.reload()
    expect(page.get_by_label("Kind")).to_have_value("liquidation")


@pytest.mark.slow
def test_an_account_is_followed(opened: Opening, house: PageHouse) -> None:
    page = opened("#/account/live/17")
    facts, orders = page.locator("main .facts"), page.locator("#orders tbody tr")
    expect(facts).to_contain_text("910.19 %")
    expect(orders).to_have_count(3)
    expect(page.locator("#history")).to_contain_text("insufficient margin")
    house.portfolio["equity_usd"] = 4_321.0
    expect(facts).to_contain_text("4,321.00")
    figures = {name: None for name in house.portfolio if name.endswith(("_usd", "_pct"))}
    house.portfolio.update(figures, state="unknown", degraded_fields=["quote_stale:EURUSD"])
    expect(page.locator("main")).to_contain_text("The figures are unknown: quote stale:EURUSD.")
    expect(facts).not_to_contain_text("4,321.00")
    assert facts.locator("dd", has_text="unknown").count() == 9  # the state, figures, and two thresholds
    go(page, "#/account/live/404")
    expect(page.get_by_role("alert").filter(has_text="unknown_account")).to_be_visible()


# ---- for everybody

HERE = Path(__file__).parent
CONTRAST, BLEMISHES = ((HERE / name).read_text() for name in ("page_contrast.js", "page_blemishes.js"))


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["desk", "phone"])
def test_every_page_can_be_read_in_every_theme_and_width(
    opened: Opening, house: PageHouse, theme: str, size: dict[str, int]
) -> None:
    house.summary["halted"] = ["symbol:XAUUSD"]
    page = opened(color_scheme=theme, viewport=size)
    for name, where in PAGES.items():
        go(page, where)
        expect(page.locator("main table").first).to_be_visible()
        seen, poor = page.evaluate(CONTRAST)
        assert seen > 20 and not poor, name
        assert page.evaluate(BLEMISHES) == [], name
    page.keyboard.press("?")
    assert page.evaluate(CONTRAST)[1] == []
    page.keyboard.press("Escape")
    page.evaluate("document.querySelector('#leave').click()")
    assert page.evaluate(CONTRAST)[1] == [] and page.evaluate(BLEMISHES) == []


@pytest.mark.slow
def test_the_theme_is_the_systems_until_another_is_chosen(opened: Opening) -> None:
    page = opened(color_scheme="light")
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    before = page.evaluate(ground)
    page.keyboard.press("t")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark" and page.evaluate(ground) != before
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    expect(page.get_by_role("button", name="Light theme")).to_be_visible()


@pytest.mark.slow
def test_charts_are_drawn_and_go_on(opened: Opening, house: PageHouse) -> None:
    house.backlog = 120
    page = opened(charts=True)
    expect(page.locator(".plot[data-drawn]")).to_have_count(3)
    points = "[...document.querySelectorAll('.plot')].at(-1).data[0].x.length"
    until(lambda: page.evaluate(points) > 120)
    before = page.evaluate(points)
    until(lambda: page.evaluate(points) > before)
    assert page.locator(".barlayer .point").count() == 12
    expect(page.get_by_role("group", name="Margin levels")).to_contain_text("200\u2013300 %: 147 accounts")


# ---- with the API itself


@contextmanager
def real_house(tmp_path: Path) -> Iterator[tuple[House, str]]:
    """The whole API with a daemon that acts and workers; and a token for a person who may see everything."""
    private = ec.generate_private_key(ec.SECP256R1())
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "people.pem").write_bytes(public)
    with EmbeddedServer.start() as running, ExitStack() as stack:
        desk = Desk(Server(running.url, running.pid), valuation__quote_max_age_ms=0)
        stack.callback(desk.close)
        for account, balance in {"live:1": 10_000, "live:2": 560, "live:3": 120, "strategy_provider:M": 6_000}.items():
            desk.account(account, balance=balance)
            desk.office.order(account, "O1" if account != "strategy_provider:M" else "SP1")
        desk.account("demo:4", leverage="none")
        stop, engine = threading.Event(), make_engine(desk.new_client(), desk.settings)
        ticking = threading.Thread(target=lambda: deque(engine.run(stop), maxlen=0))
        ticking.start()
        stack.callback(engine.close)
        stack.callback(ticking.join)
        stack.callback(stop.set)
        stack.enter_context(working(desk))
        flags = {"valuation__quote_max_age_ms": 0, "api__desk": True, "api__desk_refresh_ms": 200}
        house = stack.enter_context(served(desk, api__token_keys_file=str(tmp_path / "people.pem"), **flags))
        yield house, make_token(private, "ana", ALL_SCOPES, ["*"], 600)


@pytest.mark.slow
def test_the_page_understands_the_real_api(browser: Browser, tmp_path: Path) -> None:
    with real_house(tmp_path) as (house, token), browser.new_context(viewport=WIDE) as context:
        page, faults = context.new_page(), []
        context.set_default_timeout(20_000)
        page.on("pageerror", lambda fault: faults.append(str(fault)))
        page.on("console", lambda said: faults.append(said.text) if is_fault(said) else None)
        page.goto(f"{house.url}/#token={token}")
        expect(page.locator("body")).to_have_attribute("data-live", "live", timeout=20_000)
        expect(tile(page, "accounts")).to_have_text("5")
        expect(tile(page, "unknown")).to_have_text("1")
        expect(page.get_by_role("table", name="Why accounts are unknown")).to_contain_text("leverage invalid")
        first = page.locator("#closest tbody tr").first
        expect(first).to_contain_text("live:3")
        expect(first).to_contain_text("warning")
        expect(page.locator(".plot[data-drawn]")).to_have_count(3, timeout=20_000)

        go(page, "#/ladder/EURUSD")
        expect(page.locator("#rungs tbody tr")).to_have_count(31)
        expect(page.get_by_role("table", name="Accounts that a move")).to_contain_text("live:3")
        go(page, "#/what-if?EURUSD=-0.6")
        expect(page.get_by_role("table", name="Accounts that would be closed out")).to_contain_text("live:2")

        go(page, "#/account/live/1")
        expect(page.locator("#orders tbody tr")).to_have_count(1)
        expect(page.locator("main .state")).to_have_text("following")
        expect(page.locator("#orders tbody tr")).to_contain_text("1.08")
        order = {"user_type": "live", "user_id": "1", "symbol": "EURUSD", "order_type": "BUY", "order_quantity": "0.5"}
        assert house.caller().post("/api/orders/instant/execute", order).status_code == 200
        expect(page.locator("#orders tbody tr")).to_have_count(2)
        expect(page.locator("#history")).to_contain_text("opened")

        go(page, "#/")
        house.desk.quote("1.0838", "1.08385")  # live:3 breaks its critical level
        closed = page.locator("#news tbody tr").filter(has_text="liquidation").filter(has_text="live:3")
        expect(closed.filter(has_text="O1 closed")).to_contain_text("result \u2212", timeout=20_000)
        expect(closed.filter(has_text="to close O1")).to_contain_text("critical")
        go(page, "#/audit?kind=liquidation&account=live%3A3")
        expect(page.locator("#entries tbody tr").first).to_contain_text("liquidation")
        go(page, "#/account/live/9")
        expect(page.get_by_role("alert").filter(has_text="unknown_account").first).to_be_visible()
        assert not faults
