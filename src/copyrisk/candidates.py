"""Followers on their way to a copy: what was read of them, and what their accounts would be with it."""

from dataclasses import dataclass, field
from decimal import Decimal

import numpy as np
import numpy.typing as npt

from copyrisk.book import RowNumbers
from copyrisk.cover import margin_usd, new_orders, value_with
from copyrisk.decimals import cents_of
from copyrisk.derived import copy_ids
from copyrisk.forms import Form
from copyrisk.kills import TRADING_HALTED, Kills
from copyrisk.layout import Rows
from copyrisk.market import InstrumentKey
from copyrisk.observer import Observer
from copyrisk.replication import MasterEvent
from copyrisk.risk import CONVERSION_SIDES
from copyrisk.store.changes import next_version
from copyrisk.store.copies import CopyColumns, usd_bytes
from copyrisk.store.decisions import Decision
from copyrisk.store.followers import Ledgers
from copyrisk.store.remainders import remainder_texts

Places = npt.NDArray[np.intp]


@dataclass(slots=True)
class Glance:
    """What was read of the followers of a decision when it was made; as long as it stands, nothing need be read again.

    Attributes
    ----------
    rows : (n,) int32
        Of the book, by place in the decision.
    ledgers : Ledgers
        Read before the look that the decision rests on, by place.
    """

    rows: RowNumbers
    ledgers: Ledgers


@dataclass(slots=True)
class Candidates:
    """Followers on their way to a copy; everything is by their order here."""

    places: Places
    rows: RowNumbers
    versions: list[str | None]
    reserved_usd: npt.NDArray[np.float64]
    time_ms: int
    forms: list[Form | None] = field(default_factory=list)
    counts: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    margins: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


def seen_candidates(places: Places, glance: Glance) -> Candidates:
    """What was there of everybody who is left when the decision was made."""
    ledgers = glance.ledgers
    versions = [ledgers.versions[place] for place in places.tolist()]
    return Candidates(places, glance.rows[places], versions, ledgers.reserved_usd[places], ledgers.time_ms)


def value_candidates(
    observer: Observer, symbol_text: str, decision: Decision, candidates: Candidates
) -> tuple[Rows, Rows]:
    """Figures of candidates with their copy, and of the copy alone; unknown for those without a form."""
    book, rows, decided = observer.book, candidates.rows, decision.rows
    steps = np.array([float(words.get("step", "nan")) for words in decision.header["groups"]])
    lots = decided["sized"]["steps"][candidates.places] * steps[decided["group"][candidates.places]]
    prices = [np.nan if form is None else float(form.price) for form in candidates.forms]
    sides = [form is not None and form.is_buy for form in candidates.forms]
    symbol, groups = book.market.names.index.put(symbol_text.encode()), book.groups_of(rows)
    names, which = np.unique(groups, return_inverse=True)
    found = [book.market.instrument_of(name, symbol) for name in names.tolist()]
    held = book.orders[book.order_rows_of(rows)]
    place = np.full(len(book.accounts), -1, np.int32)
    place[rows] = np.arange(len(rows))
    held["account"] = place[held["account"]]
    new = new_orders(lots, prices, sides, np.array(found, np.int32)[which])
    nets = book.rules.nets_orders
    return value_with(
        book.accounts[rows], held, new, book.market, CONVERSION_SIDES[book.rules.rate_side], nets_orders=nets
    )


def halted_reasons(kills: Kills, event: MasterEvent, observer: Observer, rows: RowNumbers) -> npt.NDArray[np.bytes_]:
    """(n,) S40: why each of some accounts may get no copy now; empty for those that may."""
    of_all = kills.of_all(event.symbol, event.master.id)
    if of_all is not None:
        return np.full(len(rows), of_all.code.encode(), "S40")
    row_of = observer.book.account_ids.row_of
    is_halted = np.isin(rows, [row_of(account.encode()) for account in kills.accounts])
    return np.where(is_halted, TRADING_HALTED.encode(), b"").astype("S40")


def need_terms(observer: Observer, rows: RowNumbers, symbol: str) -> bool:
    """Have the next look read the terms of a symbol that nobody has held in these accounts' groups so far, if any."""
    market = observer.book.market
    known = len(market.instrument_keys)
    for name in np.unique(observer.book.groups_of(rows)).tolist():
        market.ensure_instrument(InstrumentKey(market.names.text(name), symbol))
    return len(market.instrument_keys) > known


def copy_columns(
    observer: Observer, decision: Decision, candidates: Candidates, members: list[int], deadline_ms: int
) -> CopyColumns:
    """What is filled in for some candidates of one form, by their places among the candidates."""
    form = candidates.forms[members[0]]
    assert form is not None
    decided, accounts = decision.rows, observer.book.accounts
    places, rows = candidates.places[members], candidates.rows[members]
    followers = decided["follower"][places].tolist()
    order_ids = copy_ids(decision.order_id, followers)
    versions = [candidates.versions[i] or "" for i in members]
    steps = [Decimal(words.get("step", "0")) for words in decision.header["groups"]]
    groups, sizes = decided["group"][places].tolist(), decided["sized"]["steps"][places].tolist()
    said = [form.amounts(steps[group], size) for group, size in zip(groups, sizes, strict=True)]
    alone = candidates.margins[members].tolist()
    margins = {value: margin_usd(value) for value in dict.fromkeys(alone)}
    texts = {value: usd_bytes(margin) for value, margin in margins.items()}
    cents = {value: cents_of(margin) for value, margin in margins.items()}
    return CopyColumns(
        followers=followers,
        order_ids=order_ids,
        request_ids=form.requests.request_ids(followers, order_ids),
        deadline=b"%d" % deadline_ms,
        versions=[version.encode() for version in versions],
        new_versions=[next_version(version, candidates.time_ms) for version in versions],
        balances=[repr(value).encode() for value in accounts["balance"][rows].tolist()],
        leverages=[repr(value).encode() for value in accounts["leverage"][rows].tolist()],
        counts=[b"%d" % count for count in candidates.counts[members].tolist()],
        amounts=said,
        margins=[texts[value] for value in alone],
        margin_cents=[cents[value] for value in alone],
        remainders=_remainders(decision, places.tolist()),
    )


def _remainders(decision: Decision, places: list[int]) -> list[bytes] | bytes:
    if not decision.header["carries"]:
        return b""
    return [said.encode() for said in remainder_texts(decision, places)]
