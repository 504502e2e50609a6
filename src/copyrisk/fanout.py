"""Making the copies that were decided: each exactly once, however often it is begun.

A copy's id follows from order and follower, and the call that makes it refuses a second one. Each follower is judged
once more on what its account is now: an account that changes under the call is read and judged again.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal, localcontext
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import structlog

from copyrisk import crash
from copyrisk._core import RowCode
from copyrisk.book import RowNumbers
from copyrisk.commands import Command, CommandType, copy_id
from copyrisk.conditions import LotLimits
from copyrisk.copying import CopySettings
from copyrisk.cover import are_covered, margin_usd, new_orders, value_with
from copyrisk.decimals import EXACT
from copyrisk.errors import CopyriskError, StoreUnavailable
from copyrisk.execution import decide
from copyrisk.keys import Account
from copyrisk.layout import Rows
from copyrisk.market import InstrumentKey
from copyrisk.observer import Observer
from copyrisk.orders import is_pending_type
from copyrisk.placing import ORDERS_LIMIT, amounts_of
from copyrisk.replication import COPIED, MADE, MasterEvent, reversed_target, reversed_type
from copyrisk.risk import CONVERSION_SIDES, fully_known
from copyrisk.situation import Outcome, Situation, SymbolMarket
from copyrisk.store.changes import DECISION_MS, Cause, next_version
from copyrisk.store.copies import Copy, CopyForm, commission_text, lots_text, usd_text
from copyrisk.store.decisions import Decision
from copyrisk.store.effects import Effects
from copyrisk.store.followers import Ledgers
from copyrisk.store.functions import KEY_UNUSABLE, refused, text
from copyrisk.store.markets import Markets
from copyrisk.store.pipe import Pipe
from copyrisk.terms import AccountType

log = structlog.get_logger(__name__)

_ROUNDS = 50
_EFFECTS_AT_ONCE = 100
_ANY_LOTS = LotLimits(Decimal(10) ** -18, Decimal(10) ** 18, Decimal(10) ** -18)


class _Class(NamedTuple):
    """Followers for whom a copy is the same but for lots, margin and ids."""

    group: str
    settings: int
    reverse: bool


class _Form(NamedTuple):
    requests: CopyForm
    market: SymbolMarket
    price: Decimal
    is_buy: bool
    is_filled: bool


@dataclass(slots=True)
class _Work:
    """One decision on its way.

    Attributes
    ----------
    left : (k,) intp
        Places of followers whose copy is still to be made.
    sent : list of (int, _Form, Copy)
        Copies made by now, whose effects are to be brought about.
    found : list of (int, str)
        Places of copies that were there already.
    """

    event: MasterEvent
    decision: Decision
    made: Rows
    order_ids: list[str]
    left: npt.NDArray[np.intp]
    sent: list[tuple[int, _Form, Copy]] = field(default_factory=list)
    found: list[int] = field(default_factory=list)

    def end(self, places: npt.NDArray[np.intp], results: Any) -> None:
        """Say what came of some; they are not tried again."""
        self.made["result"][places] = results
        self.left = np.setdiff1d(self.left, places)


class Fanout:
    """Makes the copies of decisions."""

    def __init__(self, pipe: Pipe, observer: Observer, markets: Markets, effects: Effects, batch: int) -> None:
        self._pipe, self._observer, self._markets, self._effects = pipe, observer, markets, effects
        self._batch = batch
        self._side = CONVERSION_SIDES[observer.book.rules.rate_side]

    def make(self, event: MasterEvent, decision: Decision, *, until_ms: int) -> list[int]:
        """Make all copies that are not there yet, and say in `decision.made` what came of each follower.

        Parameters
        ----------
        until_ms : int
            By the server's clock; afterwards nothing more is made.

        Returns
        -------
        list of int
            Places of copies that were made before, of which it is not known whether all that follows was brought about.

        Raises
        ------
        StoreError, StoreUnavailable
            Some copies may have been made; beginning anew goes on with the others.
        """
        work = _work(event, decision)
        for _ in range(_ROUNDS):
            if not len(work.left):
                break
            self._round(work, until_ms)
        else:
            raise StoreUnavailable(f"{len(work.left)} accounts changed again and again", code="accounts_busy")
        crash.reach("copies.made")
        self._bring_about(work)
        crash.reach("copies.followed")
        decision.made = work.made
        return work.found

    def _round(self, work: _Work, until_ms: int) -> None:
        """Judge everybody who is left on what is known now, and try to make their copies."""
        observer, places = self._observer, work.left
        rows = observer.followers.rows_of(work.decision.rows["follower"][places].tolist())
        work.end(places[rows < 0], b"account_missing")
        places, rows = places[rows >= 0], rows[rows >= 0]
        self._need_terms(rows, work.event.symbol)
        ledgers = observer.followers.ledgers(rows)  # before the look: what is seen is of these versions, or later
        observer.look()
        still = observer.book.born[rows] != 0
        work.end(places[~still], b"account_missing")
        candidates = _Candidates(places, rows, ledgers).taken(np.flatnonzero(still))
        forms = self._forms(work, candidates)
        covered = self._judge(work, candidates, forms)
        deadline_ms = min(ledgers.time_ms + DECISION_MS, until_ms)
        self._send(work, covered, forms, deadline_ms)

    def _need_terms(self, rows: RowNumbers, symbol: str) -> None:
        """Have the next look read the terms of a symbol that nobody has held in these accounts' groups so far."""
        market = self._observer.book.market
        for name in np.unique(self._observer.book.groups_of(rows)).tolist():
            market.ensure_instrument(InstrumentKey(market.names.text(name), symbol))

    # ---- what an order is in each class

    def _forms(self, work: _Work, candidates: "_Candidates") -> list[_Form | None]:
        """The form of each candidate's class; `None` for who is refused, which is said."""
        followers, book = self._observer.followers, self._observer.book
        names = book.groups_of(candidates.rows)
        numbers = followers.numbers_of(candidates.rows)
        is_reverse = np.array([words["reverse"] for words in work.decision.header["settings"]], np.bool_)
        reverse = is_reverse[work.decision.rows["settings"][candidates.places]]
        keys = np.stack([names, numbers, reverse]).T.astype(np.int64)
        distinct, which = np.unique(keys, axis=0, return_inverse=True)
        groups = [book.market.names.text(name) for name in distinct[:, 0].tolist()]
        markets = self._markets_of(dict.fromkeys(groups), work.event.symbol)
        forms: list[_Form | None] = []
        for i, group in enumerate(groups):
            kind = _Class(group, int(distinct[i, 1]), bool(distinct[i, 2]))
            form = self._form(work.event, markets[group], kind, followers.settings[kind.settings])
            if isinstance(form, str):
                work.end(candidates.places[which.ravel() == i], form.encode())
            forms.append(None if isinstance(form, str) else form)
        return [forms[k] for k in which.ravel().tolist()]

    def _markets_of(self, groups: Mapping[str, None], symbol: str) -> dict[str, SymbolMarket]:
        market = self._markets.market
        rows = {group: market.ensure_instrument(InstrumentKey(group, symbol)) for group in groups}
        self._markets.read(sorted(set(rows.values())))
        found = {}
        for group, row in rows.items():
            found_market = self._markets.of(row)
            assert found_market is not None, "it has been asked for"
            found[group] = found_market
        return found

    def _form(self, event: MasterEvent, market: SymbolMarket, kind: _Class, settings: CopySettings) -> _Form | str:
        """The requests of a class, or why nothing can be opened in it."""
        refusal = settings.refusal
        if refusal:
            return refusal
        try:
            outcome = self._outcome(event, market, kind, settings)
        except CopyriskError as refused_now:
            return refused_now.code
        standing = kind.group, settings.copy_status
        cause = Cause(event.entry_id, "copy")
        requests = CopyForm(outcome, cause, standing, self._markets.now_ms, self._effects)
        order = outcome.order
        return _Form(requests, market, order.price, order.order_type.is_buy, bool(order.opened))

    def _outcome(self, event: MasterEvent, market: SymbolMarket, kind: _Class, settings: CopySettings) -> Outcome:
        order_type = reversed_type(event.order_type) if kind.reverse else event.order_type
        is_pending = is_pending_type(order_type)
        levels = reversed_target(event.target) if kind.reverse else event.target
        account = Account(AccountType.FOLLOWER, "-")
        command = Command(
            id=event.entry_id,
            type=CommandType.PENDING if is_pending else CommandType.OPEN,
            account=account,
            order_id="-",
            key="",
            client_key="",
            body="",
            symbol=event.symbol,
            order_type=order_type,
            quantity=event.asked,
            price=event.price if is_pending else None,
            stop_loss=levels.stop_loss,
            take_profit=levels.take_profit,
            master_order_id=event.order_id,
        )
        agreed = replace(market.agreed(), lots=_ANY_LOTS)  # the size has been held against the limits
        situation = Situation(
            account=account,
            now_ms=self._markets.now_ms,
            balance=Decimal(0),
            sending_orders=settings.sending_orders,
            is_active=True,
            order=None,
            market=replace(market, conditions=agreed),
            order_count=0,
        )
        outcome = decide(command, situation)
        assert isinstance(outcome, Outcome)
        return outcome

    # ---- margin

    def _judge(self, work: _Work, candidates: "_Candidates", forms: Sequence[_Form | None]) -> "_Candidates":
        """Those who can carry their copy, with its margin; of the others it is said why not."""
        kept = np.array([form is not None for form in forms], np.bool_)
        places = candidates.places
        counts = self._observer.book.order_counts(candidates.rows)
        self._end(
            work, candidates, kept, np.array([v is None for v in candidates.ledgers.versions]), "account_unreadable"
        )
        self._end(work, candidates, kept, np.isnan(candidates.ledgers.reserved_usd), "account_unknown")
        self._end(work, candidates, kept, counts >= ORDERS_LIMIT, "too_many_orders")
        figures, alone = self._value(work, candidates, forms)
        # An account that changed while it was read is tried again.
        moving = self._observer.figures["code"][candidates.rows] == RowCode.ACCOUNT_CHANGING
        known = fully_known(figures) & fully_known(alone)
        covered = are_covered(figures, alone, candidates.ledgers.reserved_usd)
        self._end(work, candidates, kept, ~known & ~moving, "account_unknown")
        self._end(work, candidates, kept, known & ~covered & ~moving, "insufficient_margin")
        candidates.margins, candidates.counts = alone["used_margin_all"], counts
        work.made["margin_cents"][places] = np.where(known, np.rint(np.nan_to_num(alone["used_margin_all"]) * 100), 0)
        return candidates.taken(np.flatnonzero(kept & ~moving))

    @staticmethod
    def _end(work: _Work, candidates: "_Candidates", kept: npt.NDArray[np.bool_], which: Any, reason: str) -> None:
        """Refuse some of those who are still kept."""
        refused_now = kept & which
        if refused_now.any():
            work.end(candidates.places[refused_now], reason.encode())
            kept &= ~which

    def _value(self, work: _Work, candidates: "_Candidates", forms: Sequence[_Form | None]) -> tuple[Rows, Rows]:
        book, rows = self._observer.book, candidates.rows
        lots = work.decision.rows["sized"]["steps"][candidates.places] * self._steps(work, candidates.places)
        prices = [float(form.price) if form else np.nan for form in forms]
        sides = [form.is_buy if form else False for form in forms]
        symbol = book.market.names.index.put(work.event.symbol.encode())
        pairs = {name: book.market.instrument_of(name, symbol) for name in np.unique(book.groups_of(rows)).tolist()}
        instruments = np.array([pairs[name] for name in book.groups_of(rows).tolist()], np.int32)
        held = book.orders[book.order_rows_of(rows)]
        place = np.full(len(book.accounts), -1, np.int32)
        place[rows] = np.arange(len(rows))
        held["account"] = place[held["account"]]
        new = new_orders(lots, prices, sides, instruments)
        nets = book.rules.nets_orders
        return value_with(book.accounts[rows], held, new, book.market, self._side, nets_orders=nets)

    @staticmethod
    def _steps(work: _Work, places: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        steps = [float(words.get("step", "nan")) for words in work.decision.header["groups"]]
        found: npt.NDArray[np.float64] = np.array(steps)[work.decision.rows["group"][places]]
        return found

    # ---- making them

    def _send(self, work: _Work, chosen: "_Candidates", forms: Sequence[_Form | None], deadline_ms: int) -> None:
        copies = self._copies(work, chosen, forms, deadline_ms)
        pending: list[list[tuple[int, _Form, Copy]]] = []
        done: list[int] = []

        def parts() -> Iterator[tuple[bytes, int]]:
            for start in range(0, len(chosen.places), self._batch):
                batch = [next(copies) for _ in range(min(self._batch, len(chosen.places) - start))]
                pending.append(batch)
                yield b"".join([form.requests.copy(copy) for _, form, copy in batch]), len(batch)

        for replies in self._pipe.exchange_parts(parts()):
            stored_us = time.time_ns() // 1_000 - 1_000 * work.decision.header["received_ms"]
            for one, reply in zip(pending.pop(0), replies, strict=True):
                done += self._take(work, one, reply, stored_us)
            crash.reach("copies.batch")
        work.left = np.setdiff1d(work.left, np.array(done, np.intp))

    @staticmethod
    def _take(work: _Work, one: tuple[int, _Form, Copy], reply: Any, stored_us: int) -> list[int]:
        """What the server said of a copy; empty if it must be tried again."""
        place, _, copy = one
        failure = refused(reply)
        if failure is not None:
            if failure.code != KEY_UNUSABLE:
                raise failure
            work.made["result"][place] = b"account_unreadable"
            return [place]
        answer = reply[0]
        if answer == b"done":
            work.made[place] = (COPIED, int(copy.new_version), stored_us, work.made["margin_cents"][place])
            work.sent.append(one)
        elif answer == b"exists":
            work.made["result"][place], work.made["stored_us"][place] = COPIED, -1
            work.found.append(place)
        else:
            return []
        return [place]

    def _copies(
        self, work: _Work, chosen: "_Candidates", forms: Sequence[_Form | None], deadline_ms: int
    ) -> Iterator[tuple[int, _Form, Copy]]:
        rows, places = work.decision.rows, chosen.places.tolist()
        steps = [Decimal(words.get("step", "0")) for words in work.decision.header["groups"]]
        texts: dict[Any, tuple[bytes, bytes, bytes]] = {}
        accounts, deadline = self._observer.book.accounts, str(deadline_ms).encode()
        balances, leverages = (accounts[name][chosen.rows].tolist() for name in ("balance", "leverage"))
        groups, sizes = rows["group"][places].tolist(), rows["sized"]["steps"][places].tolist()
        margins: dict[float, bytes] = {}
        for i, place in enumerate(places):
            form = forms[chosen.origin[i]]
            assert form is not None
            key = (id(form), groups[i], sizes[i])
            said = texts.get(key)
            if said is None:
                said = texts[key] = _amounts(form, sizes[i] * steps[groups[i]])
            margin = margins.get(chosen.margins[i])
            if margin is None:
                margin = margins[chosen.margins[i]] = usd_text(margin_usd(float(chosen.margins[i])))
            follower, order_id, version = (
                text(rows["follower"][place]),
                work.order_ids[place],
                chosen.ledgers.versions[i],
            )
            assert version is not None
            request_id = form.requests.request_id(follower, order_id)
            new_version = next_version(version, chosen.ledgers.time_ms)
            yield (
                place,
                form,
                Copy(
                    follower.encode(),
                    order_id.encode(),
                    request_id.encode(),
                    deadline,
                    version.encode(),
                    b"%d" % new_version,
                    repr(balances[i]).encode(),
                    repr(leverages[i]).encode(),
                    b"%d" % chosen.counts[i],
                    *said,
                    margin,
                ),
            )

    # ---- what follows

    def _bring_about(self, work: _Work) -> None:
        """Bring about what follows from the copies that were made now."""
        sent = work.sent

        def parts() -> Iterator[tuple[bytes, int]]:
            for start in range(0, len(sent), _EFFECTS_AT_ONCE):
                batch = sent[start : start + _EFFECTS_AT_ONCE]
                count = sum(form.requests.effect_commands for _, form, _ in batch)
                yield b"".join([form.requests.effects(copy) for _, form, copy in batch]), count

        failed = 0
        for replies in self._pipe.exchange_parts(parts()):
            for reply in replies:
                failure = refused(reply)
                if failure is not None and failure.code != KEY_UNUSABLE:
                    raise failure
                failed += failure is not None
            crash.reach("copies.effects")
        if failed:
            log.critical("effects_failed", order=work.event.order_id, count=failed)


@dataclass(slots=True)
class _Candidates:
    """Followers on their way to a copy; everything is by their order here.

    Attributes
    ----------
    origin : list of int
        Their places among the candidates that the round began with.
    """

    places: npt.NDArray[np.intp]
    rows: RowNumbers
    ledgers: Ledgers
    margins: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    counts: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    origin: list[int] = field(default_factory=list)

    def taken(self, chosen: npt.NDArray[np.intp]) -> "_Candidates":
        """Some of them."""
        ledgers = self.ledgers
        versions = [ledgers.versions[i] for i in chosen.tolist()]
        return _Candidates(
            self.places[chosen],
            self.rows[chosen],
            Ledgers(ledgers.time_ms, versions, ledgers.reserved_usd[chosen]),
            self.margins[chosen] if len(self.margins) else self.margins,
            self.counts[chosen] if len(self.counts) else self.counts,
            chosen.tolist(),
        )


def _work(event: MasterEvent, decision: Decision) -> _Work:
    rows = decision.rows
    made: Rows = np.zeros(len(rows), MADE)
    made["result"] = rows["reason"]
    left = np.flatnonzero(rows["reason"] == b"")
    ids = [""] * len(rows)
    for place in left.tolist():
        account = Account(AccountType.FOLLOWER, text(rows["follower"][place]))
        ids[place] = copy_id(event.order_id, account)
    return _Work(event, decision, made, ids, left)


def _amounts(form: _Form, lots: Decimal) -> tuple[bytes, bytes, bytes]:
    """Lots, contract value and commission of a copy, as they are written."""
    with localcontext(EXACT):
        value, commission = amounts_of(lots, form.price, form.market)
    return lots_text(lots), lots_text(value), commission_text(commission) if form.is_filled else b""
