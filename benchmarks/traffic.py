"""Reading and writing against the same server: the floor below, the usual way above, in turn within one run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import redis

from benchmarks import redispy
from benchmarks.floor import Floor
from benchmarks.house import house
from benchmarks.measure import Figure, load, paired, ratio
from copyrisk import fields, keys
from copyrisk.book import Book
from copyrisk.engine import Engine
from copyrisk.layout import Rows
from copyrisk.store.link import Link
from copyrisk.store.portfolios import PortfolioWriter
from copyrisk.store.reads import Reads

_ACCOUNTS = 10_000
_ROUNDS = 15
#: At most so much above the server-bound floor, and at least so much below the usual way.
SNAPSHOT_CEILING, WRITE_CEILING, REDISPY_FLOOR = 1.15, 1.25, 5.0


@dataclass
class Traffic:
    """A filled server, the book that mirrors it, and connections of their own for each way."""

    client: redis.Redis
    engine: Engine
    link: Link

    @property
    def book(self) -> Book:
        """The mirror's book."""
        return self.engine.book

    def floor(self, request: bytes) -> Floor:
        """A floor client on a connection of its own."""
        connection = self.client.connection_pool.get_connection()
        return Floor(connection._sock, request)


@contextmanager
def traffic(accounts: int) -> Iterator[Traffic]:
    """Start a server with so many accounts of about five orders each, and mirror it."""
    with house(accounts) as there:
        engine = there.engine()
        there.check(engine.tick())
        link = Link(there.client, engine.book.market.names.index)
        link.open()
        yield Traffic(there.client, engine, link)


def figures(accounts: int = _ACCOUNTS, rounds: int = _ROUNDS) -> Iterator[Figure]:
    """What reading a hash and writing a portfolio cost, and how that compares."""
    with traffic(accounts) as there:
        yield from _snapshot(there, rounds)
        yield from _write(there, rounds)


def _snapshot(there: Traffic, rounds: int) -> Iterator[Figure]:
    book = there.book
    rows = book.order_rows_of(book.account_rows())
    owners, cells = book.orders["account"][rows], book.order_ids.cells(rows)
    reads, names, sent = Reads(there.link, book), book.market.names, bytearray()

    def read() -> Rows:
        columns = reads.orders(owners, cells)
        reads.exchange()
        return columns

    with _recorded(there.link, sent):
        judged = fields.judge_orders(read(), names)
    order_keys = [
        keys.holding(book.account_at(owner), book.order_ids.text(row).decode())
        for owner, row in zip(owners.tolist(), rows.tolist(), strict=True)
    ]
    usual = redispy.read_orders(there.client, order_keys, fields.ORDER_COLUMNS.fields).rows
    for ours, theirs in (("price", "order_price"), ("lots", "order_quantity")):
        np.testing.assert_array_equal(judged[ours], np.where(np.isnan(judged[ours]), np.nan, usual[theirs]))
    runs = [
        read,
        there.floor(bytes(sent)),
        lambda: redispy.read_orders(there.client, order_keys, fields.ORDER_COLUMNS.fields),
    ]
    ours, floor, twin = paired(runs, rounds).T
    per_hash = 1e6 / len(rows)
    yield Figure("snapshot_us_per_hash", round(float(np.median(ours)) * per_hash, 2), "us", load=load())
    yield Figure("snapshot_floor_us_per_hash", round(float(np.median(floor)) * per_hash, 2), "us", load=load())
    yield ratio("snapshot_vs_floor", "floor", ours, floor, target=SNAPSHOT_CEILING, at_most=True)
    yield ratio("snapshot_vs_redispy", "redispy", twin, ours, target=REDISPY_FLOOR)


def _write(there: Traffic, rounds: int) -> Iterator[Figure]:
    """Two sets of figures in turn, so that every figure of every portfolio differs each time."""
    book, writer = there.book, PortfolioWriter(there.link, there.book)
    rows, none = book.account_rows(), np.zeros(0, np.int32)
    low = there.engine.figures.copy()
    high = low.copy()
    for name in ("open_pnl", "equity", "used_margin_executed", "used_margin_all", "free_margin", "margin_level_pct"):
        high[name] += 0.37
    turn = [low, high]

    def write() -> None:
        turn.reverse()
        writer.write(turn[0], rows, none, 1_700_000_000_000, {})
        if writer.written != len(rows) or writer.refused:
            raise AssertionError(f"{writer.written} of {len(rows)} portfolios were written")

    write()
    write()
    requests = []
    for _ in turn:
        sent = bytearray()
        with _recorded(there.link, sent):
            write()
        requests.append(there.floor(bytes(sent)))
    portfolio_keys = [keys.portfolio(book.account_at(row)) for row in rows.tolist()]
    tags = [str(book.account_at(row)) for row in rows.tolist()]
    columns = [_columns(each, rows) for each in turn]

    def floor() -> None:
        requests.reverse()
        requests[0]()

    def usual() -> None:
        columns.reverse()
        if redispy.write_portfolios(there.client, portfolio_keys, tags, columns[0], 1_700_000_000_000):
            raise AssertionError("portfolios were refused")

    ours, bare, twin = paired([write, floor, usual], rounds).T
    per_account = 1e6 / len(rows)
    yield Figure("write_us_per_account", round(float(np.median(ours)) * per_account, 2), "us", load=load())
    yield Figure("write_floor_us_per_account", round(float(np.median(bare)) * per_account, 2), "us", load=load())
    yield ratio("write_vs_floor", "floor", ours, bare, target=WRITE_CEILING, at_most=True)
    yield ratio("write_vs_redispy", "redispy", twin, ours, target=REDISPY_FLOOR)


def _columns(figures: Rows, rows: np.ndarray) -> dict[str, np.ndarray]:
    of = {
        "equity": "equity",
        "free_margin": "free_margin",
        "margin_level": "margin_level_pct",
        "open_pnl": "open_pnl",
        "total_pl": "open_pnl",
        "used_margin": "used_margin_executed",
        "used_margin_executed": "used_margin_executed",
        "used_margin_all": "used_margin_all",
    }
    return {theirs: figures[ours][rows] for theirs, ours in of.items()}


@contextmanager
def _recorded(link: Link, sent: bytearray) -> Iterator[None]:
    """Keep what a link sends, to let the floor client send the same."""
    plain = link._sock

    class Recorder:
        def __getattr__(self, name: str) -> object:
            return getattr(plain, name)

        def sendall(self, part: bytes) -> None:
            sent.extend(part)
            plain.sendall(part)

    link._sock = Recorder()
    try:
        yield
    finally:
        link._sock = plain
