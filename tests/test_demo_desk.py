"""The demo as somebody starts it: its link opens the desk's page, which is alive."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest

LIMIT_S = 90.0


@contextmanager
def demo() -> Iterator[tuple[str, str]]:
    """Address and token that a demo prints."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("COPYRISK_")}
    words = [sys.executable, "-m", "copyrisk.cli", "--demo", "--accounts", "200"]
    # An environment with a secret of its own must not be in the demo's way.
    environ = clean | {"PYTHONUNBUFFERED": "1", "COPYRISK_API_SECRET": "x" * 40}
    with subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        try:
            assert running.stdout is not None
            for line in running.stdout:
                found = re.search(r"(http://127\.0\.0\.1:\d+/)#token=(\S+)", line)
                if found:
                    yield found[1], found[2]
                    break
            else:
                pytest.fail("the demo printed no link")
        finally:
            running.send_signal(signal.SIGTERM)
            running.communicate(timeout=LIMIT_S)


def asked_until(client: httpx.Client, path: str, is_there: Any) -> Any:
    """What is answered once it is as wanted."""
    ends_s = time.monotonic() + LIMIT_S
    while True:
        with suppress(httpx.HTTPError):
            answer = client.get(path)
            if answer.is_success and is_there(answer):
                return answer
        assert time.monotonic() < ends_s, f"{path} did not come to it"
        time.sleep(0.2)


@pytest.mark.slow
def test_the_demo_has_a_desk_that_is_alive() -> None:
    with demo() as (url, token), httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}) as client:
        page = asked_until(client, "/", lambda answer: True)
        assert "copyrisk" in page.text
        assert len(client.get("/static/plotly.js").content) > 100_000
        summary = asked_until(
            client, "/api/risk/summary", lambda answer: (answer.json()["data"]["accounts"] or {}).get("total") == 200
        ).json()["data"]
        assert sum(summary["histogram"]["counts"]) > 0
        ladder = asked_until(client, "/api/risk/ladder", lambda answer: answer.json()["data"]["symbols"]).json()["data"]
        assert any(one["down"]["critical"] or one["up"]["critical"] for one in ladder["symbols"])
        asked_until(client, "/api/audit?kind=warning", lambda answer: answer.json()["data"]["entries"])
        asked_until(
            client, "/api/risk/summary", lambda answer: answer.json()["data"]["tick"]["duration_ms"] is not None
        )
