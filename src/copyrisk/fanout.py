"""Making the copies that were decided: each exactly once, however often it is begun.

A copy's id follows from order and follower, and the call that makes it refuses a second one. Each follower is judged
once more on what its account is now: an account that changes under the call is read and judged again.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
import structlog

from copyrisk import crash, keys
from copyrisk._core import RowCode
from copyrisk.candidates import Candidates, Glance, Places, need_terms, seen_candidates, value_candidates
from copyrisk.commands import copy_ids
from copyrisk.cover import are_covered, margin_usd
from copyrisk.decimals import cents_of
from copyrisk.forms import Form, Forms
from copyrisk.layout import Rows
from copyrisk.observer import Observer
from copyrisk.placing import ORDERS_LIMIT
from copyrisk.replication import COPIED, MADE, MasterEvent
from copyrisk.risk import fully_known
from copyrisk.store.changes import DECISION_MS, next_version
from copyrisk.store.copies import CopyColumns, usd_bytes
from copyrisk.store.decisions import Decision
from copyrisk.store.effects import Effects
from copyrisk.store.followers import follower_account
from copyrisk.store.functions import KEY_UNUSABLE, refused
from copyrisk.store.lease import Lease
from copyrisk.store.markets import Markets
from copyrisk.store.pipe import Pipe, pack
from copyrisk.store.remainders import remainder_texts

log = structlog.get_logger(__name__)

_ROUNDS = 50
_EFFECTS_AT_ONCE = 100


@dataclass(slots=True)
class _Sent:
    """Copies of one form that were made by now, and those of them whose effects are to be brought about."""

    form: Form
    columns: CopyColumns
    done: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Work:
    """One decision on its way.

    Attributes
    ----------
    left : (k,) intp
        Places of followers whose copy is still to be made.
    found : list of int
        Places of copies that were there already.
    """

    event: MasterEvent
    decision: Decision
    forms: Forms
    made: Rows
    order_ids: list[bytes]
    left: Places
    sent: list[_Sent] = field(default_factory=list)
    found: list[int] = field(default_factory=list)

    def end(self, places: Places, reason: str) -> None:
        """Say why some get no copy; they are not tried again."""
        if len(places):
            self.made["result"][places] = reason.encode()
            self.left = np.setdiff1d(self.left, places)


class Fanout:
    """Makes the copies of decisions."""

    def __init__(
        self, pipe: Pipe, observer: Observer, markets: Markets, effects: Effects, *, lease: Lease, batch: int
    ) -> None:
        self._pipe, self._observer, self._markets, self._effects = pipe, observer, markets, effects
        self._lease, self._batch = lease, batch

    def make(self, event: MasterEvent, decision: Decision, glance: Glance | None) -> list[int]:
        """Make all copies that are not there yet, and say in `decision.made` what came of each follower.

        Parameters
        ----------
        glance : Glance or None
            If the decision has only just been made.

        Returns
        -------
        list of int
            Places of copies that were made before, of which it is not known whether all that follows was brought about.

        Raises
        ------
        StoreError, StoreUnavailable
            Some copies may have been made; beginning anew goes on with the others.
        """
        work = _work(event, decision, Forms(event, self._markets, self._effects))
        if glance is None:
            self._find_made(work)
        for _ in range(_ROUNDS):
            if not len(work.left):
                break
            self._round(work, glance)
            glance = None
        if len(work.left):
            log.error("accounts_busy", order=event.order_id, count=len(work.left))
        work.end(work.left, "account_busy")
        crash.reach("copies.made")
        self._bring_about(work)
        crash.reach("copies.followed")
        decision.made = work.made
        return work.found

    def _find_made(self, work: _Work) -> None:
        """Take out those whose copy is there: what holds now of who has it is no reason against it."""
        asked = []
        for place in work.left.tolist():
            account, own = follower_account(work.decision.rows["follower"][place]), work.order_ids[place].decode()
            asked.append(pack("EXISTS", keys.order_record(account, own), keys.holding(account, own)))
        counts = np.array([0 if refused(reply) else reply for reply in self._pipe.exchange(asked)], np.int64)
        found = work.left[counts > 0]
        work.made["result"][found], work.made["stored_us"][found] = COPIED, -1
        work.found += found.tolist()
        work.left = work.left[counts == 0]

    def _round(self, work: _Work, glance: Glance | None) -> None:
        """Judge everybody who is left on what is known, and try to make their copies."""
        candidates = self._look(work) if glance is None else seen_candidates(work.left, glance)
        self._choose_forms(work, candidates, anew=glance is None)
        chosen = self._judge(work, candidates)
        deadline_ms = min(candidates.time_ms + DECISION_MS, self._lease.keep())
        self._send(work, candidates, chosen, deadline_ms)

    def _look(self, work: _Work) -> Candidates:
        """What is there now of everybody who is left."""
        observer, places = self._observer, work.left
        rows = observer.followers.rows_of(work.decision.rows["follower"][places].tolist())
        work.end(places[rows < 0], "account_missing")
        places, rows = places[rows >= 0], rows[rows >= 0]
        need_terms(observer, rows, work.event.symbol)
        ledgers = observer.followers.ledgers(rows)  # before the look: what is seen is of these versions, or later
        observer.look()
        if need_terms(observer, rows[observer.book.born[rows] != 0], work.event.symbol):
            observer.look()  # somebody came into another group
        work.end(places[observer.book.born[rows] == 0], "account_missing")
        still = np.flatnonzero(observer.book.born[rows] != 0)
        versions = [ledgers.versions[i] for i in still.tolist()]
        return Candidates(places[still], rows[still], versions, ledgers.reserved_usd[still], ledgers.time_ms)

    def _choose_forms(self, work: _Work, candidates: Candidates, *, anew: bool) -> None:
        """Give each candidate the form of its class; `None` to who is refused, which is said."""
        followers, book = self._observer.followers, self._observer.book
        is_reverse = np.array([words["reverse"] for words in work.decision.header["settings"]], np.bool_)
        reverse = is_reverse[work.decision.rows["settings"][candidates.places]]
        names, numbers = book.groups_of(candidates.rows), followers.numbers_of(candidates.rows)
        same = np.array(followers.kinds, np.int64)[numbers]
        kinds = (names.astype(np.int64) << 32) | (same << 1) | reverse
        distinct, which = np.unique(kinds, return_inverse=True)
        texts = {name: book.market.names.text(name) for name in np.unique(names).tolist()}
        work.forms.read(texts.values(), anew=anew)
        forms: list[Form | None] = []
        for i, kind in enumerate(distinct.tolist()):
            settings = followers.settings[(kind & 0xFFFFFFFF) >> 1]
            form = work.forms.of(texts[kind >> 32], settings, reverse=bool(kind & 1))
            if isinstance(form, str):
                work.end(candidates.places[which == i], form)
            forms.append(None if isinstance(form, str) else form)
        candidates.forms = [forms[k] for k in which.tolist()]

    # ---- margin

    def _judge(self, work: _Work, candidates: Candidates) -> Places:
        """Which candidates can carry their copy; of the others it is said why not, or they are tried again."""
        kept = np.array([form is not None for form in candidates.forms], np.bool_)
        counts = candidates.counts = self._observer.book.order_counts(candidates.rows)
        figures, alone = value_candidates(self._observer, work.event.symbol, work.decision, candidates)
        candidates.margins = alone["used_margin_all"]
        known = fully_known(figures) & fully_known(alone) & ~np.isnan(candidates.reserved_usd)
        moving = self._observer.figures["code"][candidates.rows] == RowCode.ACCOUNT_CHANGING
        covered = are_covered(figures, alone, candidates.reserved_usd)
        for which, reason in (
            (np.array([version is None for version in candidates.versions], np.bool_), "account_unreadable"),
            (counts >= ORDERS_LIMIT, "too_many_orders"),
            (~known & ~moving, "account_unknown"),
            (known & ~covered & ~moving, "insufficient_margin"),
        ):
            work.end(candidates.places[kept & which], reason)
            kept &= ~which
        return np.flatnonzero(kept & ~moving)

    # ---- making them

    def _send(self, work: _Work, candidates: Candidates, chosen: Places, deadline_ms: int) -> None:
        by_form: dict[int, list[int]] = {}
        for i in chosen.tolist():
            by_form.setdefault(id(candidates.forms[i]), []).append(i)
        batches: list[tuple[_Sent, list[int], int]] = []

        def parts() -> Iterator[tuple[bytes, int]]:
            for members in by_form.values():
                form = candidates.forms[members[0]]
                assert form is not None
                sent = _Sent(form, self._columns(work, form, candidates, members, deadline_ms))
                work.sent.append(sent)
                for start in range(0, len(members), self._batch):
                    stop = min(start + self._batch, len(members))
                    batches.append((sent, members, start))
                    yield form.requests.copies(sent.columns, start, stop), stop - start

        done: list[int] = []
        for replies in self._pipe.exchange_parts(parts()):
            stored_us = time.time_ns() // 1_000 - 1_000 * work.decision.header["received_ms"]
            sent, members, start = batches.pop(0)
            for k, reply in enumerate(replies, start):
                place = int(candidates.places[members[k]])
                if self._take(work, sent, k, place, reply, stored_us):
                    done.append(place)
            crash.reach("copies.batch")
        work.left = np.setdiff1d(work.left, np.array(done, np.intp))

    @staticmethod
    def _take(work: _Work, sent: _Sent, k: int, place: int, reply: Any, stored_us: int) -> bool:  # noqa: PLR0917
        """What the server said of a copy; false if it must be tried again."""
        failure = refused(reply)
        if failure is not None:
            if failure.code != KEY_UNUSABLE:
                raise failure
            work.made["result"][place] = b"account_unreadable"
        elif reply[0] == b"done":
            work.made[place] = (COPIED, sent.columns.new_versions[k], stored_us, sent.columns.margin_cents[k])
            sent.done.append(k)
        elif reply[0] == b"exists":
            work.made["result"][place], work.made["stored_us"][place] = COPIED, -1
            work.found.append(place)
        else:
            return False
        return True

    def _columns(
        self, work: _Work, form: Form, candidates: Candidates, members: list[int], deadline_ms: int
    ) -> CopyColumns:
        decided, accounts = work.decision.rows, self._observer.book.accounts
        places, rows = candidates.places[members], candidates.rows[members]
        followers = decided["follower"][places].tolist()
        order_ids = [work.order_ids[place] for place in places.tolist()]
        versions = [candidates.versions[i] or "" for i in members]
        steps = [Decimal(words.get("step", "0")) for words in work.decision.header["groups"]]
        groups, sizes = decided["group"][places].tolist(), decided["sized"]["steps"][places].tolist()
        amounts = {
            pair: form.amounts(pair[1] * steps[pair[0]]) for pair in dict.fromkeys(zip(groups, sizes, strict=True))
        }
        said = [amounts[pair] for pair in zip(groups, sizes, strict=True)]
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
            remainders=_remainders(work.decision, places.tolist()),
        )

    # ---- what follows

    def _bring_about(self, work: _Work) -> None:
        """Bring about what follows from the copies that were made now."""

        def parts() -> Iterator[tuple[bytes, int]]:
            for sent in work.sent:
                for start in range(0, len(sent.done), _EFFECTS_AT_ONCE):
                    yield sent.form.requests.effects(sent.columns, sent.done[start : start + _EFFECTS_AT_ONCE])

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


def _remainders(decision: Decision, places: list[int]) -> list[bytes] | bytes:
    if not decision.header["carries"]:
        return b""
    return [said.encode() for said in remainder_texts(decision, places)]


def _work(event: MasterEvent, decision: Decision, forms: Forms) -> _Work:
    rows = decision.rows
    made: Rows = np.zeros(len(rows), MADE)
    made["result"] = rows["reason"]
    left = np.flatnonzero(rows["reason"] == b"")
    ids = copy_ids(event.order_id, rows["follower"].tolist())
    return _Work(event, decision, forms, made, ids, left)
