#!/usr/bin/env python3
"""Draw `docs/demo.svg`, the README's picture: some seconds of the real demo, recorded from its live view.

.venv/bin/python tools/picture.py
"""

import io
import threading
from pathlib import Path

from rich.console import Console
from rich.live import Live

from copyrisk.book import Book
from copyrisk.demo.feed import SyntheticFeed
from copyrisk.demo.run import DemoOptions, children
from copyrisk.demo.seed import seed
from copyrisk.demo.trades import Trades
from copyrisk.demo.view import LiveView
from copyrisk.embedded import EmbeddedServer
from copyrisk.engine import Engine
from copyrisk.hours import MarketHours
from copyrisk.rules import ValuationRules
from copyrisk.store.connection import connect
from copyrisk.store.pipe import Pipe

TICKS = 100


def main() -> None:
    """Record and write the picture."""
    console = Console(record=True, width=100, height=34, force_terminal=True, file=io.StringIO())
    with EmbeddedServer.start() as server:
        client = connect(server.url, connect_timeout_ms=1000, reply_timeout_ms=2000)
        pipe = Pipe(client)
        seed(pipe, 1000, SyntheticFeed().first())
        engine = Engine(client, Book(ValuationRules()), MarketHours(always_open=True), 200)
        view = LiveView(Live(console=console, auto_refresh=False), Trades(pipe))
        engine.tick()  # the cold start is not what a demo looks like
        with children(server.url, DemoOptions()):
            for report in engine.run(threading.Event(), ticks=TICKS):
                view.show(report, engine)
                last = report
            console.print(view.picture(last, engine))
    picture = console.export_svg(title="python3 tools/dev.py demo")
    (Path(__file__).parent.parent / "docs" / "demo.svg").write_text(picture)


if __name__ == "__main__":
    main()
