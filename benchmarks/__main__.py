"""`python -m benchmarks [--json] [--quick]`: measure the headline figures."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable

from rich.console import Console
from rich.table import Table

from benchmarks import chain, cutoff, http, orders, replication, scenario, sizing, tick, traffic, triggers, valuation
from benchmarks.measure import Figure
from copyrisk.log import configure_logging

Suite = Callable[[], Iterable[Figure]]
SUITES: tuple[Suite, ...] = (
    valuation.figures,
    triggers.figures,
    traffic.figures,
    orders.figures,
    chain.figures,
    http.figures,
    sizing.figures,
    replication.figures,
    cutoff.figures,
    scenario.figures,
    tick.figures,
)
QUICK_SUITES: tuple[Suite, ...] = (
    lambda: valuation.figures(rounds=2),
    lambda: traffic.figures(accounts=500, rounds=2),
    lambda: triggers.figures(2_000, 200),
    lambda: orders.figures(accounts=200, singles=20, batch=20),
    lambda: chain.figures(20),
    lambda: http.figures(0.2, 2),
    lambda: sizing.figures(followers=2_000, rounds=2),
    lambda: replication.figures(replication.QUICK),
    lambda: cutoff.figures(cutoff.QUICK),
    lambda: scenario.figures((500,), rounds=2),
    lambda: tick.figures(tick.QUICK),
)


def main() -> int:
    """Print one JSON object per line, or a table with the targets."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: whether it runs")
    options = parser.parse_args()
    configure_logging("console", "error")  # to stderr; that a tick was late is among the figures
    console = Console()
    table = Table("figure", "value", "interval", "target", "reached", box=None)
    for suite in QUICK_SUITES if options.quick else SUITES:
        for figure in suite():
            if options.json:
                print(json.dumps(figure.as_json()), flush=True)
            else:
                table.add_row(*_row(figure))
    if not options.json:
        console.print(table)
    return 0


def _row(figure: Figure) -> tuple[str, str, str, str, str]:
    interval = "" if figure.low is None else f"{figure.low:g} to {figure.high:g}"
    target = "" if figure.target is None else f"{'<=' if figure.at_most else '>='} {figure.target:g}"
    reached = {None: "", True: "yes", False: "NO"}[figure.reached]
    return figure.name, f"{figure.value:g} {figure.unit}", interval, target, reached


if __name__ == "__main__":
    sys.exit(main())
