"""Gates: what must not get slower. Absolute times never decide.

python -m benchmarks.gates                    # ratios and instruction counts
python -m benchmarks.gates --update-baseline  # store the instruction counts of this compiler
python -m benchmarks.gates --against REV      # asv continuous between REV and HEAD
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain

from benchmarks import instructions, orders, traffic, valuation

#: Ratios that decide, and how far the worse end of their interval may fall. Below the target where the target is
#: not safely reached on every machine; docs/benchmarks.md has both.
FLOORS = {
    "kernel_vs_numpy_textbook": 12.0,
    "kernel_vs_numpy_best": 3.5,
    "kernel_vs_numba": 1.6,
    "snapshot_vs_redispy": 3.5,
    "write_vs_redispy": 3.5,
}
CEILINGS = {
    "kernel_vs_bandwidth": 1.6,
    "snapshot_vs_floor": 1.3,
    "write_vs_floor": 1.45,
    "opens_batched_vs_bare_calls": 6.5,
}
_TOLERANCE = 0.03
_ROUNDS = 11


def ratio_gates() -> list[tuple[bool, str]]:
    """Paired ratios of one run, judged by the worse end of their interval; once more if one falls short.

    A neighbour on the machine can spoil a run; a kernel that got slower spoils both.
    """
    judged = _judged_ratios()
    return judged if all(passed for passed, _ in judged) else _judged_ratios()


def _judged_ratios() -> list[tuple[bool, str]]:
    judged = []
    placing = orders.figures(accounts=1_100, singles=100, batch=100)
    for figure in chain(valuation.headline(rounds=_ROUNDS), traffic.figures(rounds=_ROUNDS), placing):
        if figure.name in FLOORS:
            worst, limit = figure.low or 0.0, FLOORS[figure.name]
            line = f"{figure.name} {figure.value:g}, at worst {worst:g}, must be at least {limit:g}"
            judged.append((worst >= limit, line))
        elif figure.name in CEILINGS:
            worst, limit = figure.high or float("inf"), CEILINGS[figure.name]
            line = f"{figure.name} {figure.value:g}, at worst {worst:g}, must be at most {limit:g}"
            judged.append((worst <= limit, line))
    return judged


def instruction_gates() -> Iterator[tuple[bool, str]]:
    """Counts against the baseline of this compiler; in CI a gate that cannot be checked fails."""
    strict = os.environ.get("CI") == "true"
    if shutil.which("valgrind") is None:
        yield not strict, "instruction counts: valgrind is not installed"
        return
    stored = json.loads(instructions.BASELINE.read_text()).get(instructions.compiler())
    if stored is None:
        yield not strict, f"instruction counts: no baseline for {instructions.compiler()} (--update-baseline makes one)"
        return
    try:
        counts = instructions.counts()
    except RuntimeError as failure:
        yield False, f"instruction counts: {failure}"
        return
    for name, found in counts.items():
        limit = round(stored[name] * (1 + _TOLERANCE))
        yield found <= limit, f"{name} {found} instructions, baseline {stored[name]}, must be at most {limit}"


def update_baseline() -> None:
    """Store the counts of this compiler beside those of others."""
    path = instructions.BASELINE
    stored = json.loads(path.read_text()) if path.exists() else {}
    stored[instructions.compiler()] = instructions.counts()
    path.write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n")


def main() -> int:
    """Check all gates, one line each; the exit code says whether all held."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gates", description=__doc__)
    parser.add_argument("--update-baseline", action="store_true")
    parser.add_argument("--against", metavar="REV")
    options = parser.parse_args()
    if options.update_baseline:
        update_baseline()
        return 0
    if options.against:
        return subprocess.run(
            [sys.executable, "-m", "asv", "continuous", options.against, "HEAD"], check=False
        ).returncode
    held = True
    for gates in (ratio_gates(), instruction_gates()):
        for passed, line in gates:
            print("pass" if passed else "FAIL", line, flush=True)
            held = held and passed
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
