"""What a tick costs against how many accounts there are: a table and a plot in `docs/`.

    python -m benchmarks.sizes    # needs the extra [plots]

The server is the system's Redis if there is one, on the same cores as the daemon.
"""

import platform
import sys
from pathlib import Path

from benchmarks.house import PERIOD_MS, house
from benchmarks.measure import load
from benchmarks.tick import MOVES, run, start
from copyrisk.store.connection import check_server

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000)
DOCS = Path(__file__).parent.parent / "docs"
_TICKS = 30
_TITLES = {"idle": "nothing moves", "one": "one of 64 symbols moves", "all": "all symbols move"}


def main() -> int:
    """Measure, then write `docs/sizes.md` and `docs/sizes.svg`."""
    try:
        import matplotlib  # noqa: F401, PLC0415 - before minutes are spent
    except ImportError:
        print("matplotlib is missing: pip install .[plots]", file=sys.stderr)
        return 2
    loads, p50s, lines, server = [], {move: [] for move in MOVES}, [], ""
    for accounts in SIZES:
        with house(accounts) as there:
            server = str(check_server(there.client))
            cold_s, memory = start(there)
            cells = [f"{accounts:,}"]
            for move in MOVES:
                done = run(there, move, _TICKS)
                p50s[move].append(done.percentile(50))
                cells.append(f"{done.percentile(50):.1f} / {done.percentile(99):.1f}")
        loads.append(load())
        cells += [f"{cold_s:.2f}", f"{memory / accounts:,.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    _write_table(lines, loads, server)
    _write_plot(p50s)
    return 0


def _write_table(lines: list[str], loads: list[float], server: str) -> None:
    head = [
        "# Cost against size",
        "",
        f"Five orders an account, 64 symbols. Tick p50 / p99 in ms of {_TICKS} ticks on the {PERIOD_MS} ms grid; first",
        "tick (everything read, valued and written) in s; bytes of memory an account.",
        f"{server.partition(',')[0]} on the same cores, {platform.machine()}, load {min(loads):g} to {max(loads):g}.",
        "Written by `python -m benchmarks.sizes`.",
        "",
        "| accounts | " + " | ".join(_TITLES[move] for move in MOVES) + " | first tick | memory |",
        "|---|" + "---|" * (len(MOVES) + 2),
    ]
    (DOCS / "sizes.md").write_text("\n".join([*head, *lines, "", "![tick p50 against accounts](sizes.svg)", ""]))


def _write_plot(p50s: dict[str, list[float]]) -> None:
    import matplotlib as mpl  # noqa: PLC0415 - an extra

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "copyrisk"  # the same figures make the same file
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(7.2, 4.2))
    for move, title in _TITLES.items():
        axes.loglog(SIZES, p50s[move], marker="o", label=title)
    axes.axhline(PERIOD_MS, color="grey", linestyle="--", linewidth=1, label=f"the tick: {PERIOD_MS} ms")
    axes.set_xlabel("accounts, five orders each")
    axes.set_ylabel("tick p50, ms")
    axes.grid(True, which="both", alpha=0.25)
    axes.legend()
    figure.tight_layout()
    figure.savefig(DOCS / "sizes.svg", metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
