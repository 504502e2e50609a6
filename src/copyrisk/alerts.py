"""Episodes of warning and criticality: what the ladder's edges make of them, who is warned, what the trail says of it.

An episode is stored before anything is done about it, together with the notice that its client gets. A client is warned
once an episode, and not again within the cool-down; an episode that outlasts it is warned of at its end.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from copyrisk._core import RowCode
from copyrisk._cutoff import Edge
from copyrisk.audit import AuditKind, Entry
from copyrisk.book import Book, RowNumbers
from copyrisk.evidence import Evidence
from copyrisk.identifiers import Account
from copyrisk.ladders import Ladders
from copyrisk.risk import Valuer
from copyrisk.store.episodes import Episode, Episodes, EpisodeStep, as_stored

log = structlog.get_logger(__name__)

#: Numbers of an account's episodes must not come again, so they are kept for longer than anything that names them.
_FORGET_MS = 7 * 86_400_000
_LOOK_MS = 60_000
_KEPT_EDGES = int(Edge.WARNED | Edge.BREACHED | Edge.RECOVERED | Edge.SAFE)


class Alerts:
    """The episodes of all accounts of a book."""

    def __init__(self, book: Book, ladders: Ladders, episodes: Episodes, *, cooldown_ms: int) -> None:
        self._book, self._ladders, self._episodes, self._cooldown_ms = book, ladders, episodes, cooldown_ms
        self._known: dict[Account, Episode] = {}
        self._unwarned: set[Account] = set()
        self._looked_ms = 0

    def load(self) -> None:
        """Take over what is known of all episodes.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        self._known = self._episodes.load()
        self._unwarned = {account for account, episode in self._known.items() if _is_unwarned(episode)}

    def restore(self, new: RowNumbers) -> None:
        """Put accounts that came into the book back on the rungs where their episodes left them."""
        wanted = set(new.tolist())
        if not wanted:
            return
        for account, episode in self._known.items():
            row = self._book.row_of(account) if episode.is_open or episode.is_critical else -1
            if row in wanted:
                self._ladders.restore(row, is_critical=episode.is_critical, is_latched=episode.is_latched)

    def begun(self) -> set[Account]:
        """Accounts of which all is to be closed and something was already.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        latched = [account for account, episode in self._known.items() if episode.is_latched]
        return self._episodes.have_begun({account: self.event_of(account) for account in latched})

    def owed(self) -> dict[str, Account]:
        """Cascades that are to begin, as far as is stored: masters by event."""
        return {episode.owed_cascade: account for account, episode in self._known.items() if episode.owed_cascade}

    def event_of(self, account: Account) -> str:
        """What made an account critical: the same id for as long as it is, whatever is restarted."""
        episode = self._known.get(account, Episode())
        return f"{account.type.value}-{account.id}-{episode.number}-{episode.breaches}"

    def owing(self, account: Account) -> EpisodeStep:
        """Note that a master's cascade is to begin, for what made him critical."""
        episode = self._known[account]
        return EpisodeStep(account, episode, replace(episode, owed_cascade=self.event_of(account)))

    def cascaded(self, account: Account, event_id: str, *, again: bool) -> EpisodeStep:
        """Note that it has begun; `again`: that was another time, and he is critical anew.

        What is owed by then for a later event stays owed.
        """
        episode = self._known.get(account)
        known = episode or Episode()
        owed = "" if known.owed_cascade == event_id else known.owed_cascade
        return EpisodeStep(account, episode, replace(known, owed_cascade=owed, breaches=known.breaches + again))

    def judge(
        self, evidence: Evidence, valuer: Valuer, rows: RowNumbers, edges: npt.NDArray[np.uint8], now_ms: int
    ) -> tuple[list[EpisodeStep], list[Entry]]:
        """What edges make of episodes, and what the trail is told before that is stored."""
        steps: dict[Account, EpisodeStep] = {}
        entries: list[Entry] = []
        chosen = np.flatnonzero(edges & _KEPT_EDGES)
        for row, edge in zip(rows[chosen].tolist(), edges[chosen].tolist(), strict=True):
            account = self._book.account_at(row)
            episode = self._moved(self._known.get(account, Episode()), edge, row, now_ms)
            steps[account] = EpisodeStep(account, self._known.get(account), episode)
        for account in {*self._unwarned, *steps}:
            now = steps[account].episode if account in steps else self._known[account]
            row = self._book.row_of(account)
            if now is None or not self._is_due(now, now_ms) or not self._is_known(valuer, row):
                continue
            warned = replace(now, warned_ms=now_ms)
            notice = self._notice(evidence, row, account, warned, now_ms)
            steps[account] = EpisodeStep(account, self._known.get(account), warned, notice)
            entries.append(self._entry(evidence, row, account, notice["notice_id"], now_ms))
        if now_ms - self._looked_ms > _LOOK_MS:
            self._looked_ms = now_ms
            over = [account for account, episode in self._known.items() if self._is_over(episode, now_ms)]
            steps = {account: EpisodeStep(account, self._known[account], None) for account in over} | steps
        return list(steps.values()), entries

    def taken(self, steps: Sequence[EpisodeStep]) -> None:
        """Remember what was stored."""
        for step in steps:
            self._unwarned.discard(step.account)
            if step.episode is None:
                self._known.pop(step.account, None)
                continue
            self._known[step.account] = as_stored(step.episode)
            if _is_unwarned(step.episode):
                self._unwarned.add(step.account)

    # ---- single steps

    def _moved(self, episode: Episode, edge: int, row: int, now_ms: int) -> Episode:
        if edge & Edge.WARNED:
            number = max(episode.number + 1, now_ms)  # whatever was forgotten, it never comes again
            # A warning that is yet to come was given by a clock that was wrong.
            warned_ms = episode.warned_ms if episode.warned_ms <= now_ms else 0
            episode = replace(episode, number=number, is_open=True, began_ms=now_ms, warned_ms=warned_ms, breaches=0)
        if edge & Edge.BREACHED:
            latched = bool(self._ladders.rows[row]["is_latched"])
            episode = replace(episode, breaches=episode.breaches + 1, is_critical=True, is_latched=latched)
        if edge & (Edge.SAFE | Edge.RECOVERED):
            episode = replace(episode, is_critical=False, is_latched=False)
        return replace(episode, is_open=False) if edge & Edge.RECOVERED else episode

    def _is_due(self, episode: Episode, now_ms: int) -> bool:
        """Whether the client is to be warned now."""
        return _is_unwarned(episode) and now_ms - episode.warned_ms >= self._cooldown_ms

    def _is_known(self, valuer: Valuer, row: int) -> bool:
        return row >= 0 and bool(valuer.figures["code"][row] == RowCode.OK)

    def _is_over(self, episode: Episode, now_ms: int) -> bool:
        last_ms = max(episode.warned_ms, episode.began_ms)
        return not (episode.is_open or episode.is_critical) and now_ms - last_ms > max(_FORGET_MS, self._cooldown_ms)

    def _notice(self, evidence: Evidence, row: int, account: Account, episode: Episode, now_ms: int) -> dict[str, str]:
        said: dict[str, Any] = {**evidence.figures(row), "positions": evidence.worst_positions(row)}
        return {
            "notice_id": f"{account}:{episode.number}",
            "kind": AuditKind.WARNING.value,
            "user_type": account.type.value,
            "user_id": account.id,
            "ts": str(now_ms),
            "said": json.dumps(said, separators=(",", ":")),
        }

    def _entry(self, evidence: Evidence, row: int, account: Account, notice_id: str, now_ms: int) -> Entry:
        said = {"figures": evidence.figures(row), "quotes": evidence.quotes(row)}
        return Entry(AuditKind.WARNING, str(account), notice_id, "level_at_or_below_warning", said, now_ms)


def _is_unwarned(episode: Episode) -> bool:
    return episode.is_open and episode.warned_ms < episode.began_ms
