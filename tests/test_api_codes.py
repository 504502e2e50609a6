"""The page of the API's codes, held against what its modules raise: every code, under its status, and no others."""

import ast
import importlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import copyrisk
from copyrisk.api import answers, bodies
from copyrisk.api.app import make_app
from copyrisk.api.copying import copying_routes
from copyrisk.api.copying_bodies import IDENTITY_FIELDS
from copyrisk.api.reading import reading_routes
from copyrisk.api.reports import report_routes
from copyrisk.api.risk import risk_routes
from copyrisk.errors import RowCode
from copyrisk.following import SETTING_NAMES

SOURCE = Path(copyrisk.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "api.md"
#: What ends the start of a process, or a command line, is no answer.
NO_ANSWERS = ("ConfigError",)
NO_ROUTES = ("scopes",)
AWAY = ("StoreError", "StoreUnavailable", "TryLater", "Lost")
#: Modules of the decisions about changes, whose refusals are events that the API passes on.
DECIDING = ("placing", "execution", "steps", "situation", "conditions", "store/kill_switch", "store/enrolment")
#: Where a code is that of something else, which is counted where it is made.
PASSED_ON = {
    *("fault.code", "refused['code']", "event['code']", "refusal.code", "failure.code", "outcome.code", "code"),
    *("field.code", "FIELDS[name].code", "code or f'invalid_{name}'", "f'invalid_{name}'", "f'{begins}_{name}'"),
}
#: What `name` is in `invalid_` + name: parameters, fields that a route has fixed, fields of copying.
NAMED = ("limit", "from_ms", "to_ms", "keep_open", "user_type", *IDENTITY_FIELDS, "investment", *SETTING_NAMES)

Coded = tuple[int, str]


def documented() -> set[Coded]:
    """Status and code of each that the page names."""
    tables = PAGE.read_text().partition("## Codes\n")[2]
    found = set()
    for line in tables.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and re.search(r"[a-z]", line):
            status = int(cells[0]) if cells[0].isdecimal() else 409
            said = cells[-1] if cells[0].isdecimal() else cells[0]
            found |= {(status, code) for code in re.findall(r"`([a-z]+(?:_[a-z]+)+)`", said)}
    return found - {(403, "sending_orders")}


def codes_of(value: ast.expr, known: Mapping[str, Any]) -> list[str]:
    if isinstance(value, ast.Constant):
        return [str(value.value)]
    if isinstance(value, ast.Name) and isinstance(known.get(value.id), str):
        return [known[value.id]]
    if isinstance(value, ast.IfExp):
        return codes_of(value.body, known) + codes_of(value.orelse, known)
    assert ast.unparse(value) in PASSED_ON, f"where does this come from? {ast.unparse(value)}"
    return []


def raised(path: Path) -> Iterator[Coded]:
    """Status and code of each error and refusal that a module makes."""
    tree, known = ast.parse(path.read_text()), vars(importlib.import_module(f"copyrisk.api.{path.stem}"))
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        assert isinstance(call.func, ast.Name)
        named = {word.arg: word.value for word in call.keywords}
        if call.func.id == "refusal" and len(call.args) > 2 and isinstance(call.args[2], ast.Constant):
            yield from ((int(str(call.args[2].value)), code) for code in codes_of(call.args[0], known))
        elif "code" in named and call.func.id not in NO_ANSWERS:
            status = named.get("status")
            for code in codes_of(named["code"], known):
                if isinstance(status, ast.Constant):
                    yield int(str(status.value)), code
                else:
                    yield status_of(call.func.id, code), code


def status_of(error: str, code: str) -> int:
    if error in AWAY:
        return 503
    return 422 if error == "InvalidId" else answers.status_of(code)


def needed() -> set[str]:
    """The query parameters that a route cannot do without; who leaves one out is told by the application."""
    nowhere: Any = SimpleNamespace(desk=None)
    routers = (copying_routes(nowhere), reading_routes(nowhere), report_routes(nowhere), risk_routes(nowhere))
    document = make_app(routers).openapi()
    routes = [route for path in document["paths"].values() for route in path.values()]
    said = [parameter for route in routes for parameter in route.get("parameters", ())]
    return {parameter["name"] for parameter in said if parameter["in"] == "query" and parameter["required"]}


def of_the_api() -> set[Coded]:
    modules = [path for path in sorted((SOURCE / "api").glob("*.py")) if path.stem not in NO_ROUTES]
    found = {coded for path in modules for coded in raised(path)}
    words = {
        code for path in modules for code in re.findall(r'"((?:invalid|missing|unknown)_[a-z_]+)"', path.read_text())
    }
    words |= {field.code for field in bodies.FIELDS.values()} | {f"invalid_{name}" for name in NAMED}
    words |= {f"missing_{name}" for name in needed()}
    there = {code for _, code in found}
    return found | {(answers.status_of(code), code) for code in words - there | set(answers._STATUSES)}


def test_every_code_of_the_api_is_on_its_page() -> None:
    assert len(of_the_api()) > 80
    assert sorted(of_the_api() - documented()) == []


def test_codes_of_decisions_are_on_the_page() -> None:
    made = {code for name in DECIDING for code in re.findall(r'code="([a-z_]+)"', (SOURCE / f"{name}.py").read_text())}
    made |= {code.name.lower() for code in RowCode} - {"ok", "unknown"}
    made -= {"named_twice"}  # a request over HTTP names one follower
    assert sorted(made - {code for _, code in documented()}) == []


def test_the_page_names_no_code_that_nobody_makes() -> None:
    every = "".join(path.read_text() for path in SOURCE.rglob("*.py"))
    made = set(re.findall(r"[a-z]+(?:_[a-z]+)+", every)) | {one.name.lower() for one in RowCode}
    made |= {code for _, code in of_the_api()}
    assert sorted(code for _, code in documented() if code not in made) == []


def test_codes_stand_under_their_status() -> None:
    ours = of_the_api()
    codes = {code for _, code in ours}
    wrong = {(status, code) for status, code in documented() if status not in (409, 503) and code in codes} - ours
    assert wrong == set()
