"""What the demo shows: a live view on a terminal, plain lines elsewhere."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from copyrisk._core import LadderState
from copyrisk.demo.trades import Trades
from copyrisk.engine import Engine, TickReport

_REDRAWN_EVERY_S = 0.25
_PLAIN_EVERY_S = 1.0
_TICKS_REMEMBERED = 300
_BARS = " ▁▂▃▄▅▆▇█"
_STATES = (
    (LadderState.CRITICAL, "critical", "bold red"),
    (LadderState.WARNING, "warning", "yellow"),
    (LadderState.HEALTHY, "healthy", "green"),
    (LadderState.NO_MARGIN, "no margin", "cyan"),
    (LadderState.STATE_UNKNOWN, "unknown", "magenta"),
)
_SMALL_ROWS = 25
_FRAME_ROWS = 20  # everything but the list of accounts and the latest orders


class View(Protocol):
    """Shows one tick after another."""

    def show(self, report: TickReport, engine: Engine) -> None:
        """Take a tick; draw if it is time to."""


@contextmanager
def open_view(console: Console, trades: Trades) -> Iterator[View]:
    """A live view on a terminal, plain lines elsewhere."""
    if not console.is_terminal:
        yield PlainView(console, trades)
        return
    with Live(console=console, auto_refresh=False, screen=False) as live:
        yield LiveView(live, trades)


def totals_usd(engine: Engine) -> tuple[float, float]:
    """Open profit and equity of all accounts whose figures are known."""
    figures = engine.figures[engine.figures["state"] != LadderState.STATE_UNKNOWN]
    return float(figures["open_pnl"].sum()), float(figures["equity"].sum())


def closest_rows(engine: Engine, count: int) -> list[int]:
    """Rows of the accounts with margin whose level is nearest to, or furthest below, their critical level."""
    figures = engine.figures
    has_margin = np.flatnonzero(figures["state"] >= LadderState.HEALTHY)
    count = min(count, len(has_margin))
    if count == 0:
        return []
    distance = (figures["margin_level_pct"] - engine.book.accounts["critical_level_pct"])[has_margin]
    nearest = np.argpartition(distance, count - 1)[:count]
    rows: list[int] = has_margin[nearest[np.argsort(distance[nearest])]].tolist()
    return rows


class Acts:
    """What autocutoff has done since the start."""

    def __init__(self) -> None:
        self._warned = self._closes = self._cancels = self._cascades = 0

    def follow(self, report: TickReport) -> None:
        """Take one more tick."""
        if report.cutoff is not None:
            self._warned += report.cutoff.warned
            self._closes += report.cutoff.closes
            self._cancels += report.cutoff.cancels
            self._cascades += report.cutoff.cascades_finished

    def line(self, report: TickReport) -> str:
        """All of it, and what is going on now."""
        found = f"{self._warned} clients warned  {self._closes} orders closed  {self._cancels} taken back"
        found += f"  {self._cascades} cascades"
        now = report.cutoff
        if now is None:
            return found
        if now.failure:
            return f"{found}  hindered: {now.failure}"
        going_on = {"critical": now.liquidating, "held by the brake": now.held, "cascading": now.cascades_running}
        return found + "".join(f"  {count} {what}" for what, count in going_on.items() if count)


class PlainView:
    """One line a second, and one for the first tick."""

    def __init__(self, console: Console, trades: Trades) -> None:
        self._console, self._trades = console, trades
        self._due_s, self._acts = 0.0, Acts()

    def show(self, report: TickReport, engine: Engine) -> None:
        """Print a line if a second has passed."""
        self._acts.follow(report)
        now_s = time.monotonic()
        if now_s < self._due_s and report.skipped is None:
            return
        self._due_s = now_s + _PLAIN_EVERY_S
        if report.skipped is not None:
            self._console.print(f"tick {report.number}  skipped: {report.skipped}", markup=False, soft_wrap=True)
            return
        pnl, _ = totals_usd(engine)
        self._trades.follow()
        states = "  ".join(f"{label.replace(' ', '_')} {report.states[state]}" for state, label, _ in reversed(_STATES))
        self._console.print(
            f"tick {report.number}  {report.accounts} accounts  {states}  read {report.read_ms:.1f} "
            f"value {report.value_ms:.2f} write {report.write_ms:.1f} ms  pnl {pnl:.2f}  late {report.late_ticks}  "
            f"orders: {self._trades.line()}  cutoff: {self._acts.line(report)}",
            highlight=False,
            soft_wrap=True,
        )


class LiveView:
    """The whole picture, redrawn at most four times a second."""

    def __init__(self, live: Live, trades: Trades) -> None:
        self._live, self._trades = live, trades
        self._drawn_s = 0.0
        self._started_s = time.monotonic()
        self._durations: deque[float] = deque(maxlen=_TICKS_REMEMBERED)
        self._acts = Acts()
        self._skipped = 0
        self._last_skip = ""

    def show(self, report: TickReport, engine: Engine) -> None:
        """Remember the tick and redraw if it is time to."""
        self._durations.append(report.duration_ms)
        self._acts.follow(report)
        if report.skipped is not None:
            self._skipped += 1
            self._last_skip = report.skipped
        now_s = time.monotonic()
        if now_s - self._drawn_s < _REDRAWN_EVERY_S:
            return
        self._drawn_s = now_s
        self._trades.follow()
        self._live.update(self.picture(report, engine), refresh=True)

    def picture(self, report: TickReport, engine: Engine) -> Panel:
        """Everything, laid out for the size of the terminal."""
        size = self._live.console.size
        latest = max(0, min(len(self._trades.latest), size.height - _SMALL_ROWS))
        body = Group(
            self._tick_line(report, size.width),
            Text(),
            self._states(report, size.width),
            Text(),
            self._orders(size.width, latest),
            Text.assemble(("cutoff ", "bold"), self._acts.line(report)[: size.width - 12]),
            Text(),
            self._closest(engine, max(3, min(20, size.height - _FRAME_ROWS - latest)), size.width),
        )
        up_s = int(time.monotonic() - self._started_s)
        pnl, equity = totals_usd(engine)
        return Panel(
            body,
            title=f"[bold]copyrisk[/]  {report.accounts:,} accounts  {report.orders:,} orders  {report.quotes} quotes",
            subtitle=f"equity {equity:,.0f} USD   open profit {pnl:+,.0f} USD   up {up_s // 60}:{up_s % 60:02d}",
            padding=(0, 1),
        )

    def _tick_line(self, report: TickReport, width: int) -> Text:
        durations = np.array(self._durations)
        p50, p99 = np.percentile(durations, [50, 99])
        budget = float(report.period_ms)
        text = Text()
        text.append("tick ", "bold")
        text.append(f"{report.duration_ms:6.1f} ms", "green" if report.duration_ms < budget else "bold red")
        text.append(f"  of {budget:.0f}   p50 {p50:.1f}   p99 {p99:.1f}   late {report.late_ticks}")
        text.append(f"   written {report.written}")
        if self._skipped:
            text.append(f"   skipped {self._skipped}: {self._last_skip[: width - 20]}", "bold red")
        text.append("\n     ")
        scaled = np.clip(durations[-(width - 12) :] / budget * (len(_BARS) - 1), 0, len(_BARS) - 1)
        text.append("".join(_BARS[int(np.ceil(level))] for level in scaled), "blue")
        text.append(
            f"\n     read {report.read_ms:.1f} ms   value {report.value_ms:.2f} ms   write {report.write_ms:.1f} ms",
            "dim",
        )
        return text

    def _orders(self, width: int, latest: int) -> Text:
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append("orders ", "bold")
        text.append(self._trades.line()[: width - 12])
        for line in list(self._trades.latest)[::-1][:latest]:
            text.append(f"\n     {line[: width - 12]}", "dim")
        return text

    def _states(self, report: TickReport, width: int) -> Table:
        table = Table.grid(padding=(0, 1))
        room = max(10, width - 34)
        for state, label, style in _STATES:
            count = report.states.get(state, 0)
            share = count / max(1, report.accounts)
            bar = "█" * max(round(share * room), 1 if count else 0)
            table.add_row(Text(label, style), Text(f"{count:,}", justify="right"), Text(bar, style))
        for reason, count in list(report.unknown_by_reason.items())[:2]:
            table.add_row(Text(f"  {reason}", "dim"), Text(f"{count:,}", "dim", justify="right"), Text())
        return table

    def _closest(self, engine: Engine, count: int, width: int) -> Table:
        table = Table(box=None, padding=(0, 2 if width >= 100 else 1), title_justify="left", header_style="bold")
        table.add_column("closest to critical", no_wrap=True)
        for heading in ("level %", "critical %", "equity", "margin", "profit"):
            table.add_column(heading, justify="right", no_wrap=True)
        styles = {state: style for state, _, style in _STATES}
        for row in closest_rows(engine, count):
            figure, account = engine.figures[row], engine.book.account_at(row)
            table.add_row(
                str(account),
                Text(f"{figure['margin_level_pct']:,.2f}", styles[LadderState(figure["state"])]),
                f"{engine.book.accounts[row]['critical_level_pct']:g}",
                f"{figure['equity']:,.2f}",
                f"{figure['used_margin_executed']:,.2f}",
                f"{figure['open_pnl']:+,.2f}",
            )
        return table
