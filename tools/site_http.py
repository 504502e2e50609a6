"""The API's OpenAPI document as a page of the documentation site."""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from copyrisk.api.app import make_app
from copyrisk.api.serve import ROUTES, made
from copyrisk.embedded import EmbeddedServer
from copyrisk.roles import client_of
from copyrisk.settings import load_settings
from copyrisk.vitals import Vitals

Json = Mapping[str, Any]

_METHODS = ("get", "post", "put", "delete")
_HEAD = """# HTTP routes

What `copyrisk-run --role api` answers, from its OpenAPI document, which it serves at `/api/openapi.json` as well.
How to use it is told elsewhere: [API](api.md), [reading](api-reads.md), [access](access.md), [streaming](streaming.md).

An answer is `{"success": true, "message": ..., "data": ...}` or
`{"success": false, "error_code": ..., "message": ...}`; below, *data* is the shape of `data`.
"""


def http_page() -> str:
    """Every route, with what it takes and answers, and the shapes of answers."""
    document = openapi_document()
    shapes: Json = document.get("components", {}).get("schemas", {})
    parts = [_HEAD]
    for tag, routes in _by_tag(document).items():
        parts.append(f"## {tag}")
        parts += [_route(method, path, said, shapes) for path, method, said in routes]
    parts += [_refusals(document), "## Shapes"]
    parts += [_shape(name, shapes[name]) for name in sorted(shapes) if not _is_envelope(name)]
    return "\n\n".join(parts) + "\n"


def openapi_document() -> dict[str, Any]:
    """The document of the whole API, put together as the process does it, on a private server."""
    with EmbeddedServer.start() as server:
        return asyncio.run(_document(server.url))


async def _document(url: str) -> dict[str, Any]:
    environ = {"COPYRISK_API_SECRET": secrets.token_hex(32)}  # there must be one; nobody is served
    settings = load_settings(None, environ, {"redis.url": url, "api.desk": False})
    client = client_of(settings, url)
    async with made(settings, url, client, None, Vitals()) as (api, _):
        document: dict[str, Any] = make_app([make(api) for make in ROUTES]).openapi()
    client.close()
    return document


def _by_tag(document: Json) -> dict[str, list[tuple[str, str, Json]]]:
    found: dict[str, list[tuple[str, str, Json]]] = {}
    for path, methods in document["paths"].items():
        for method in _METHODS:
            if method in methods:
                said = methods[method]
                tag = next(iter(said.get("tags", ())), "other")
                found.setdefault(tag.replace("-", " ").capitalize(), []).append((path, method, said))
    return found


def _route(method: str, path: str, said: Json, shapes: Json) -> str:
    parts = [f"### `{method.upper()} {path}`", said.get("description") or said.get("summary", "")]
    parts.append(_parameters(said.get("parameters", ())))
    content = said.get("requestBody", {}).get("content", {})
    for body in content.values():
        parts.append(_fields("field of the body", body["schema"], shapes))
    parts.append(_answers(said.get("responses", {}), shapes))
    return "\n\n".join(part for part in parts if part)


def _parameters(given: Sequence[Json]) -> str:
    if not given:
        return ""
    rows = ["| parameter | in | must be there | what |", "|---|---|---|---|"]
    for one in given:
        what = "; ".join(part for part in (_type(one["schema"]), _line(one.get("description", ""))) if part)
        must = "yes" if one.get("required") else "no"
        rows.append(f"| `{one['name']}` | {one['in']} | {must} | {what} |")
    return "\n".join(rows)


def _fields(head: str, schema: Json, shapes: Json) -> str:
    if "$ref" in schema:
        schema = shapes[_name_of(schema["$ref"])]
    rows = [f"| {head} | must be there | what |", "|---|---|---|"]
    for name, said in schema.get("properties", {}).items():
        must = "yes" if name in schema.get("required", ()) else "no"
        what = "; ".join(part for part in (_type(said), _line(said.get("description", ""))) if part)
        rows.append(f"| `{name}` | {must} | {what} |")
    return "\n".join(rows) if len(rows) > 2 else ""


def _answers(given: Json, shapes: Json) -> str:
    rows = ["| status | data |", "|---|---|"]
    for status in filter(_is_good, given):
        schema = next((body.get("schema", {}) for body in given[status].get("content", {}).values()), {})
        name = _name_of(schema.get("$ref", ""))
        data = _type(shapes[name]["properties"]["data"]) if _is_envelope(name) else _kinds(given[status])
        rows.append(f"| {status} | {data} |")
    refused = ", ".join(status for status in given if not _is_good(status))
    return "\n".join(rows) + (f"\n\n[Refused](#refusals) with {refused}." if refused else "")


def _refusals(document: Json) -> str:
    found: dict[str, str] = {}
    for methods in document["paths"].values():
        for said in methods.values():
            found |= {status: _line(one["description"]) for status, one in said["responses"].items()}
    rows = ["## Refusals", "", "| status | when |", "|---|---|"]
    rows += [f"| {status} | {found[status]} |" for status in sorted(found) if not _is_good(status)]
    return "\n".join(rows)


def _kinds(answer: Json) -> str:
    return ", ".join(f"`{kind}`" for kind in answer.get("content", {}))


def _is_good(status: str) -> bool:
    return status.startswith("2")


def _shape(name: str, schema: Json) -> str:
    head = f"### {name} {{ #shape-{name.lower()} }}"
    return "\n\n".join(
        part for part in (head, _line(schema.get("description", "")), _fields("field", schema, {})) if part
    )


def _type(schema: Json) -> str:
    """A schema in a few words; shapes by their names, as links."""
    if "$ref" in schema:
        name = _name_of(schema["$ref"])
        return f"[{name}](#shape-{name.lower()})"
    several = schema.get("anyOf") or schema.get("oneOf")
    if several:
        return " or ".join(dict.fromkeys(_type(one) for one in several))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    inside = schema.get("additionalProperties")
    if kind == "object" and isinstance(inside, Mapping):
        return f"object, of {_type(inside)}"
    pattern = schema.get("pattern")
    return f"{kind}, `{_cell(pattern)}`" if pattern else kind


def _line(text: str) -> str:
    return _cell(" ".join(text.split()))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _name_of(reference: str) -> str:
    return reference.rpartition("/")[2]


def _is_envelope(name: str) -> bool:
    return name.startswith("Answer_")
