"""When to ask about a request, and when to connect again: times only."""

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass

_JITTER = 0.2  # of a wait: what broke for many at once must not come back for all of them at once


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits that double up to a cap, and up to a fifth more by lot."""

    shortest_s: float
    longest_s: float

    def wait_s(self, attempt: int) -> float:
        """How long to wait after attempt 1, 2, ..."""
        plain_s = min(self.longest_s, self.shortest_s * 2.0 ** min(attempt - 1, 60))
        return plain_s * random.uniform(1.0, 1.0 + _JITTER)


@dataclass(slots=True)
class _Wait:
    due_s: float
    asked: int = 0
    expected_s: float | None = None  # when the answer to the first unanswered message should have come


class Watch:
    """Which outstanding requests are to be asked about, and when.

    Parameters
    ----------
    backoff : Backoff
        The first wait is the time within which an answer is expected.
    recheck_s : float
        After so long without news even a request that the provider has is asked about: a report may have been lost.

    Attributes
    ----------
    unanswered : int
        Requests of which an answer is expected.
    unknown : set of str
        Requests that were not answered in time, or with a contradiction.
    """

    def __init__(self, backoff: Backoff, recheck_s: float) -> None:
        self._backoff, self._recheck_s = backoff, recheck_s
        self._waits: dict[str, _Wait] = {}
        self._heap: list[tuple[float, str]] = []
        self.unanswered = 0
        self.unknown: set[str] = set()

    def __len__(self) -> int:
        return len(self._waits)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._waits

    def __iter__(self) -> Iterator[str]:
        return iter(self._waits)

    def sent(self, request_id: str, now_s: float) -> None:
        """It was sent: an answer is expected within the first wait."""
        wait = self._wait(request_id, now_s)
        wait.asked = 0
        self._expect(request_id, wait, now_s)

    def asked(self, request_id: str, now_s: float) -> None:
        """It was asked about."""
        wait = self._wait(request_id, now_s)
        wait.asked += 1
        self._expect(request_id, wait, now_s)

    def answered(self, request_id: str, now_s: float, *, rests: bool = True) -> None:
        """The provider has said something of it that was not its end; what does not rest is to go on soon."""
        wait = self._wait(request_id, now_s)
        self.unanswered -= wait.expected_s is not None
        wait.asked, wait.expected_s = 0, None
        self.unknown.discard(request_id)
        self._put(request_id, wait, now_s + (self._recheck_s if rests else self._backoff.wait_s(1)))

    def ask_in(self, request_id: str, now_s: float, wait_s: float = 0.0) -> None:
        """Have it asked about after a while, or as soon as there is room."""
        self._put(request_id, self._wait(request_id, now_s), now_s + wait_s)

    def doubt(self, request_id: str) -> None:
        """What has become of it is unknown, until it is answered."""
        self.unknown.add(request_id)

    def forget(self, request_id: str) -> None:
        """It is finished."""
        self.unknown.discard(request_id)
        wait = self._waits.pop(request_id, None)
        if wait is not None:
            self.unanswered -= wait.expected_s is not None

    def due(self, now_s: float, count: int) -> list[tuple[str, bool]]:
        """Up to so many requests to be asked about now, and whether an answer was expected by now and did not come.

        Each is to be reported as `asked` or `sent` before the next call.
        """
        found: list[tuple[str, bool]] = []
        while self._heap and len(found) < count and self._heap[0][0] <= now_s:
            due_s, request_id = heapq.heappop(self._heap)
            wait = self._waits.get(request_id)
            if wait is not None and wait.due_s == due_s:  # else an older entry of something that has moved on
                found.append((request_id, wait.expected_s is not None and wait.expected_s <= now_s))
        return found

    def next_s(self) -> float:
        """When something may be due."""
        return self._heap[0][0] if self._heap else float("inf")

    def _wait(self, request_id: str, now_s: float) -> _Wait:
        wait = self._waits.get(request_id)
        if wait is None:
            wait = self._waits[request_id] = _Wait(now_s)
        return wait

    def _expect(self, request_id: str, wait: _Wait, now_s: float) -> None:
        if wait.expected_s is None:
            self.unanswered += 1
            wait.expected_s = now_s + self._backoff.shortest_s
        self._put(request_id, wait, now_s + self._backoff.wait_s(wait.asked + 1))

    def _put(self, request_id: str, wait: _Wait, due_s: float) -> None:
        wait.due_s = due_s
        heapq.heappush(self._heap, (due_s, request_id))
