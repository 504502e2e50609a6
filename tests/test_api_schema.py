"""What the OpenAPI document says, held against what is answered: by schemathesis, over a broker's house at work."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from copyrisk.api.scopes import Scope
from copyrisk.api.tokens import make_token
from tests.api_house import House, data, served, working
from tests.trading import Desk

pytestmark = [pytest.mark.slow]
#: Whatever is answered must be one of the documented answers, in its documented shape, and never a fault.
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "response_headers_conformance,unsupported_method,negative_data_rejection"
)
EXAMPLES = 25
#: With any ids nearly everything is refused; with these it is found.
KNOWN = """
[parameters]
"path.user_type" = "live"
"query.user_type" = "live"
"path.user_id" = "1"
"query.user_id" = "1"
"path.order_id" = "o-live"
"path.follower_id" = "f2"
"path.master_id" = "m"
"path.symbol" = "EURUSD"
"""


@pytest.fixture
def house(bundled_server: Any, tmp_path: Path) -> Iterator[tuple[House, str]]:
    """A house with accounts of each type, orders, copies, and somebody who may do everything."""
    key = ec.generate_private_key(ec.SECP256R1())
    file = tmp_path / "keys.pem"
    file.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    token = make_token(key, "schemathesis", tuple(Scope), ("*",), 3_600.0)
    desk = Desk(bundled_server)
    flags = {"api__token_keys_file": str(file), "api__rate_per_s": 100_000, "api__rate_burst": 100_000}
    with working(desk), served(desk, **{**flags, "api__desk": True}) as there:
        fill(there)
        yield there, token
    desk.close()


def fill(house: House) -> None:
    caller = house.caller()
    for account in ("live:1", "demo:1", "strategy_provider:m", "copy_follower:f"):
        house.desk.account(account)
        user_type, _, user_id = account.partition(":")
        order = {"user_type": user_type, "user_id": user_id, "symbol": "EURUSD", "order_type": "BUY"}
        data(
            caller.post("/api/orders/instant/execute", {**order, "order_quantity": "0.1", "order_id": f"o-{user_type}"})
        )
    follow = {"master_id": "m", "follower_id": "f2", "investment": "1000", "account_number": "77"}
    data(caller.post("/api/copy-trading/follow", follow))


@pytest.mark.parametrize(("ids", "phases"), [("any", "examples,coverage,fuzzing"), ("known", "fuzzing")])
def test_nothing_is_answered_that_is_not_documented(
    house: tuple[House, str], tmp_path: Path, ids: str, phases: str
) -> None:
    there, token = house
    report, config = tmp_path / "report.json", tmp_path / "schemathesis.toml"
    config.write_text(KNOWN if ids == "known" else "")
    words = [
        *(Path(sys.executable).with_name("schemathesis"), "--config-file", config),
        *("run", f"{there.url}/api/openapi.json", "--header", f"Authorization: Bearer {token}"),
        *("--checks", CHECKS, "--phases", phases, "--max-examples", str(EXAMPLES)),
        *("--seed", "1", "--workers", "2", "--continue-on-failure", "--request-timeout", "20"),
        *("--exclude-path", "/api/stream", "--suppress-health-check", "all", "--no-color"),
        *("--report", "json", "--report-json-path", str(report)),
    ]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout[-8_000:] + done.stderr[-2_000:]
    tested = re.search(r"Tested: (\d+)", done.stdout)
    assert tested is not None and int(tested[1]) == len(operations(there)) - 1, done.stdout[-2_000:]


def operations(there: House) -> list[tuple[str, str, Any]]:
    document: Any = json.loads(there.client().get("/api/openapi.json").text)
    return [(path, method, said) for path, methods in document["paths"].items() for method, said in methods.items()]


def test_every_route_is_in_the_document_and_says_who_may(house: tuple[House, str]) -> None:
    for path, method, operation in operations(house[0]):
        assert operation["summary"], path
        assert {"200", "401", "403", "422", "429", "503"} <= operation["responses"].keys(), (method, path)
