"""A stream that is followed: what is sent to open it, what comes of it, when it is opened again. No I/O here."""

import time
from collections.abc import Iterable, Iterator

from copyrisk.client.credentials import Credentials
from copyrisk.client.describing import account_of, asking, path_of
from copyrisk.client.events import Disconnected, Event, EventParser
from copyrisk.client.failures import BadAnswer, Unavailable
from copyrisk.client.trying import Received, Retries, Send, envelope, request_of
from copyrisk.identifiers import Account

#: The server says something at least every 15 s; a connection that is silent for longer is not there any more.
SILENT_S = 40.0
_OPEN, _KIND = 200, "text/event-stream"
#: Pauses before it is opened again. It is tried for as long as it takes: nobody else would notice.
_AGAIN = Retries(first_s=0.5, most_s=15.0)


class Feed:
    """What a stream is about, and how far it was read.

    Parameters
    ----------
    topics : iterable of str
        `portfolios`, `breaches`, `liquidations`, `replications`, `orders`, `summary`.
    accounts : iterable of str or Account, or None
        `T:U`; `None`: all that the caller may see; portfolios need some.
    last_event_id : str
        Where to go on; empty: it begins now.
    give_up_s : float or None
        How long it is tried to be opened before `Unavailable`; `None`: for ever.
    """

    def __init__(
        self,
        credentials: Credentials,
        topics: Iterable[str],
        accounts: Iterable[str | Account] | None,
        last_event_id: str,
        give_up_s: float | None,
    ) -> None:
        self._credentials, self._give_up_s = credentials, give_up_s
        named = None if accounts is None else ",".join(str(account_of(one)) for one in accounts)
        query = {"topics": ",".join(topics), "accounts": named}
        self._target = asking(object, path_of("stream"), query).target
        self._parser = EventParser(last_event_id)
        self._failures, self._silent_since_s, self._wanted_s = 0, time.monotonic(), 0.0
        self.last_event_id = last_event_id

    def request(self) -> Send:
        """What opens it, here or where it was left."""
        self._parser.restart()
        self._parser.last_event_id = self.last_event_id
        made = request_of(self._credentials, "GET", self._target)
        headers = {**made.headers, "Accept": _KIND, "Accept-Encoding": "identity"}
        return made._replace(headers=headers | ({"Last-Event-ID": self.last_event_id} if self.last_event_id else {}))

    def is_open(self, status: int, kind: str) -> bool:
        """Whether an answer is a stream; of what is none, `refused` says what it is."""
        return status == _OPEN and kind.partition(";")[0].strip() == _KIND

    def refused(self, came: Received) -> Disconnected:
        """What an answer means that is no stream.

        Raises
        ------
        ApiRefused
            It is not opened, now or later.
        BadAnswer, Unavailable
        """
        try:
            envelope(came)
        except Unavailable as failure:
            self._wanted_s = min(failure.retry_after_s or 0.0, 60.0)
            return self.lost(str(failure))
        raise BadAnswer(f"HTTP {came.status}, and no stream of events")

    def take(self, piece: bytes) -> Iterator[Event]:
        """What a piece tells; `last_event_id` moves on as events are taken. Raises `BadAnswer`."""
        self._failures, self._silent_since_s = 0, time.monotonic()
        for last, event in self._parser.take(piece):
            self.last_event_id = last
            yield event

    def lost(self, reason: str) -> Disconnected:
        """That it is not open any more.

        Raises
        ------
        Unavailable
            It has not been for too long.
        """
        if self._give_up_s is not None and time.monotonic() - self._silent_since_s >= self._give_up_s:
            raise Unavailable(f"the stream could not be opened for {self._give_up_s:g} s: {reason}")
        return Disconnected(self._parser.ended or reason)

    def pause_s(self) -> float:
        """How long to wait before it is opened again."""
        wanted_s, self._wanted_s = self._wanted_s, 0.0
        pause_s = max(_AGAIN.pause_s(self._failures), wanted_s)
        self._failures += 1
        return pause_s
