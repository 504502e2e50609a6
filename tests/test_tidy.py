"""The house as a test: layering, sizes, one spelling of keys, docstrings."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "copyrisk"

#: Lowest floor first; a module may import only from what stands before it.
HOUSE = (
    "_core errors layout _cutoff _scenario _index _lists _columns _wire _pack _triggers _sizing _templates crash",
    "terms identifiers keys derived decimals fields table segments vitals signing",
    "client.failures client.credentials client.shapes client.describing client.models client.copy_models client.risk",
    "client.order_calls client.copy_calls client.read_calls client.events client.trying client.streaming client.wiring",
    "client.blocking client.awaiting",
    "rules levels market book risk census cutoff_report cover hours pricing conditions flow",
    "liquidation_ladder scenario",
    "sizing_terms sizing_input sizing policies following agreement copying kills",
    "orders commands provider_reports records situation steps placing execution fills pursuit stopping replication",
    "cascade cascade_plan",
    "audit audit_check audit_files",
    "store.connection store.pipe store.link store.notices store.reads store.terms store.finder store.mirror",
    "store.portfolios store.library store.functions store.texts store.filler store.markets store.appraisal",
    "store.changes store.effects store.streams store.letters store.watch store.settled",
    "store.relation_steps store.relations store.enrolment store.relation_check store.relation_repair",
    "store.relation_views store.act_answers store.follower_settings",
    "store.trail_stream store.trail_search store.trail store.lease store.followers store.copies store.decisions",
    "store.remainders",
    "store.tallies store.copy_states",
    "store.cascade_copies store.cascades",
    "store.kill_switch store.backlog store.protection store.episodes store.lot_limits store.api_keys",
    "sql.values sql.tables sql.shapes sql.faults sql.connect sql.history sql.wallets sql.rows sql.schema",
    "sql.followers sql.database",
    "migrations.env migrations.versions.v0001_tables migrations.versions.v0002_masters",
    "gateway.messages gateway.records gateway.digest gateway.watch gateway.lines gateway.link gateway.ledger",
    "gateway.inbox gateway.session gateway.gateway gateway.script gateway.venue gateway.quotes gateway.peers",
    "gateway.simulator",
    "notify notify_text notify_line notify_mail notify_webhook store.outgoing",
    "verdicts dispatch workers recorder monitors notifier",
    "observer limits forms candidates cohort deciding fanout keeping redelivery replicator",
    "ladders brake evidence alerts plans under_way liquidation chronicle cascading halting protecting",
    "autocutoff engine",
    "exposition metrics health",
    "sections notify_sections api_sections settings roles daemon auditing",
    "api.scopes keyring",
    "relationships killing explaining progress telling reporting cascade_commands operations log _launcher embedded",
    "api.answers api.documents api.parameters api.freshness api.pool api.line api.tail api.wire api.guard api.direct",
    "api.bodies api.asking",
    "api.rates api.token_keys api.tokens api.callers api.access",
    "api.summary api.desk_book api.desk_process api.desk",
    "api.happenings api.subscriber api.watching api.feeds api.replaying api.context api.streaming",
    "api.orders api.master_orders api.copying_models api.copying_acts api.copying_bodies api.copying",
    "api.reading_models api.reading api.report_models api.reports api.risk_models api.risk api.pages",
    "api.app api.serve",
    "demo.access demo.market demo.feed demo.seed demo.clients demo.trades demo.view demo.run",
    "cli",
)
ORDER = [module for floor in HOUSE for module in floor.split()]
PACKAGES = ("", "store", "gateway", "api", "demo", "client")  # the __init__ files, which re-export

MODULES = sorted(SOURCE.rglob("*.py"))
FUNCTION_LINES, MODULE_LINES, KERNEL_LINES = 55, 320, 600


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "copyrisk":
            base = node.module.partition(".")[2]
            for alias in node.names:
                inside = f"{base}.{alias.name}".lstrip(".")
                found.add(inside if inside in ORDER or inside in PACKAGES else base)
        elif isinstance(node, ast.Import):
            found.update(a.name.partition(".")[2] for a in node.names if a.name.split(".")[0] == "copyrisk")
    return found


def test_every_module_stands_in_the_house() -> None:
    there = {name_of(path) for path in MODULES} - set(PACKAGES)
    compiled = {path.stem for path in SOURCE.glob("*.pyx")}
    assert there | compiled == set(ORDER)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down_only(path: Path) -> None:
    name = name_of(path)
    if name in PACKAGES:
        return
    below = set(ORDER[: ORDER.index(name)])
    above = {module for module in imports_of(path) if module and module not in below}
    assert not above, f"{name} imports {sorted(above)}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MODULE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < FUNCTION_LINES, f"{path.name}: {node.name}"


def test_kernels_are_short() -> None:
    for path in SOURCE.glob("*.pyx"):
        assert path.read_text().count("\n") <= KERNEL_LINES


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_public_names_are_documented(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path.name} has no docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            assert ast.get_docstring(node) or node.name.startswith("_"), f"{path.name}: {node.name}"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}: {node.name}"


KEY_PREFIXES = re.compile(
    r"user:|user_holdings|user_orders_index|user_portfolio|symbol_holders|market:|groups:|order_data|order_triggers"
    r"|copy_master_followers|copy_follower_master|market_price_updates|portfolio_updates|portfolio_force_recalc|copyrisk:"
)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_keys_are_spelled_in_one_place(path: Path) -> None:
    if name_of(path) == "keys":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            spelled = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
            assert "\n" in spelled or not KEY_PREFIXES.match(spelled), f"{path.name}:{node.lineno} spells a key"


def test_nothing_names_a_path_of_some_machine() -> None:
    written = [
        *SOURCE.rglob("*.py*"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "tools").rglob("*.py"),
        ROOT / "README.md",
    ]
    for path in written:
        if path.suffix in (".py", ".pyx", ".pyi", ".md"):
            assert not re.search(r"/(work|root|home)/\w", path.read_text()), path


def test_the_map_in_the_documentation_names_every_module() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    missing = [
        module
        for module in ORDER
        if not any(part in page for part in (f"{module.replace('.', '/')}.py", f"`{module.split('.')[0]}/`"))
    ]
    assert not missing
