"""Making the copies that were decided: each exactly once, however often it is begun.

A copy's id follows from order and follower, and the call that makes it refuses a second one. Each follower is judged
once more on what its account is now: an account that changes under the call is read and judged again.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import structlog

from copyrisk import crash, keys
from copyrisk._core import RowCode
from copyrisk.candidates import (
    Candidates,
    Glance,
    Places,
    copy_columns,
    halted_reasons,
    need_terms,
    seen_candidates,
    value_candidates,
)
from copyrisk.cover import are_covered
from copyrisk.derived import copy_ids
from copyrisk.forms import Form, Forms
from copyrisk.kills import TRADING_HALTED, UNREADABLE
from copyrisk.layout import Rows
from copyrisk.observer import Observer
from copyrisk.placing import ORDERS_LIMIT
from copyrisk.replication import COPIED, MADE, MasterEvent
from copyrisk.risk import fully_known
from copyrisk.store.changes import DECISION_MS
from copyrisk.store.copies import CopyColumns
from copyrisk.store.decisions import Decision
from copyrisk.store.effects import Effects
from copyrisk.store.followers import follower_account
from copyrisk.store.functions import KEY_UNUSABLE, refused
from copyrisk.store.kill_switch import KillSwitch
from copyrisk.store.lease import Lease
from copyrisk.store.markets import Markets
from copyrisk.store.pipe import Pipe, pack

log = structlog.get_logger(__name__)

_ROUNDS = 50
_EFFECTS_AT_ONCE, _BATCHES_AT_ONCE = 100, 5
_DONE = [b"done"]


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
        self,
        pipe: Pipe,
        observer: Observer,
        markets: Markets,
        effects: Effects,
        *,
        switch: KillSwitch,
        lease: Lease,
        batch: int,
    ) -> None:
        self._pipe, self._observer, self._markets, self._effects = pipe, observer, markets, effects
        self._switch, self._lease, self._batch = switch, lease, batch

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
        members = work.decision.rows["follower"][work.left].tolist()
        for member, order_id in zip(members, copy_ids(work.event.order_id, members), strict=True):
            account, own = follower_account(member), order_id.decode()
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
        deadline_ms = min(candidates.time_ms + DECISION_MS, self._lease.keep().ends_ms)
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
        halted = halted_reasons(self._switch.read(), work.event, self._observer, candidates.rows)
        for which, reason in (
            (halted == TRADING_HALTED.encode(), TRADING_HALTED),
            (halted == UNREADABLE.encode(), UNREADABLE),
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
        portion = _BATCHES_AT_ONCE * self._batch  # the server is at the first ones while the next ones are made
        portions = (own[i : i + portion] for own in by_form.values() for i in range(0, len(own), portion))
        batches: list[tuple[_Sent, Places, int]] = []

        def parts() -> Iterator[tuple[bytes, int]]:
            for members in portions:
                form = candidates.forms[members[0]]
                assert form is not None
                sent = _Sent(form, copy_columns(self._observer, work.decision, candidates, members, deadline_ms))
                work.sent.append(sent)
                for start in range(0, len(members), self._batch):
                    stop = min(start + self._batch, len(members))
                    batches.append((sent, candidates.places[members[start:stop]], start))
                    yield form.requests.copies(sent.columns, start, stop), stop - start

        for replies in self._pipe.exchange_parts(parts()):
            stored_us = time.time_ns() // 1_000 - 1_000 * work.decision.header["received_ms"]
            self._take(work, *batches.pop(0), replies, stored_us)
            crash.reach("copies.batch")

    def _take(  # noqa: PLR0917
        self, work: _Work, sent: _Sent, places: Places, start: int, replies: list[Any], stored_us: int
    ) -> None:
        """What the server said of a batch; who must be tried again stays among those who are left."""
        if replies == [_DONE] * len(replies):
            rows, stop = np.zeros(len(replies), MADE), start + len(replies)
            rows["result"], rows["stored_us"] = COPIED, stored_us
            rows["version"] = sent.columns.new_versions[start:stop]
            rows["margin_cents"] = sent.columns.margin_cents[start:stop]
            work.made[places] = rows
            sent.done += range(start, stop)
            work.left = np.setdiff1d(work.left, places, assume_unique=True)
            return
        done = [
            place
            for k, (place, reply) in enumerate(zip(places.tolist(), replies, strict=True), start)
            if self._take_one(work, sent, k, place, reply, stored_us)
        ]
        work.left = np.setdiff1d(work.left, np.array(done, np.intp))

    @staticmethod
    def _take_one(work: _Work, sent: _Sent, k: int, place: int, reply: Any, stored_us: int) -> bool:  # noqa: PLR0917
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


def _work(event: MasterEvent, decision: Decision, forms: Forms) -> _Work:
    rows = decision.rows
    made: Rows = np.zeros(len(rows), MADE)
    made["result"] = rows["reason"]
    left = np.flatnonzero(rows["reason"] == b"")
    return _Work(event, decision, forms, made, left)
