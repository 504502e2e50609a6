"""What the gateway keeps in Redis: outstanding requests, finished ones, published reports, breaks.

Memory holds no truth: what is outstanding and what was said of it is read when it is needed, so a second gateway, an
operator or a restart finds, and leaves, the same. Nothing here needs two keys to change at once; the order of the
steps makes every crash between them a repetition.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import structlog

from copyrisk import keys
from copyrisk.errors import Refused
from copyrisk.gateway.records import Finished, Known, Record, parse_finished, parse_record
from copyrisk.store.effects import add_request
from copyrisk.store.functions import refused, text
from copyrisk.store.pipe import Pipe, pack

#: About so many breaks are kept: a provider that talks nonsense must not fill the server.
BREAKS_LIMIT = 100_000
#: Replace a hash field that is there: what an operator has taken away must not come back.
_REPLACE = "if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end"

log = structlog.get_logger(__name__)


class Ledger:
    """The gateway's part of Redis.

    Every method may raise `StoreError` or `StoreUnavailable`; what it was to do may have been done, in part or whole,
    and may be done again.
    """

    def __init__(self, pipe: Pipe, finished_keep_ms: int) -> None:
        self._pipe, self._finished_keep_ms = pipe, finished_keep_ms

    def look(self, request_ids: Sequence[str]) -> dict[str, Known]:
        """What is known of these requests: outstanding, finished not long ago, or nothing that can be read."""
        if not request_ids:
            return {}
        asked = [pack("HMGET", keys.OUTSTANDING, *request_ids)]
        asked += [pack("GET", keys.finished_request(request_id)) for request_id in request_ids]
        outstanding, *finished = self._exchange(asked)
        return {
            request_id: _known(request_id, open_text, end_text)
            for request_id, open_text, end_text in zip(request_ids, outstanding, finished, strict=True)
        }

    def outstanding_ids(self) -> list[str]:
        """The ids of all outstanding requests."""
        (answer,) = self._exchange([pack("HKEYS", keys.OUTSTANDING)])
        return [text(request_id) for request_id in answer]

    def outstanding_count(self) -> int:
        """How many requests are outstanding."""
        (answer,) = self._exchange([pack("HLEN", keys.OUTSTANDING)])
        return int(answer)

    def intend(self, records: Sequence[Record]) -> list[bool]:
        """Write down what is about to be sent; false for what somebody has written down already."""
        answers = self._exchange(
            [pack("HSETNX", keys.OUTSTANDING, record.request.id, record.to_json()) for record in records]
        )
        return [answer == 1 for answer in answers]

    def restore(self, record: Record) -> None:
        """Write a record over one that cannot be read."""
        self._exchange([pack("HSET", keys.OUTSTANDING, record.request.id, record.to_json())])

    def update(self, records: Iterable[Record], *, also: Sequence[bytes] = ()) -> None:
        """Replace the records of requests that are still outstanding, then do what else is given."""
        self._exchange([*map(_replace, records), *also])

    def publish(self, reports: Iterable[Mapping[str, str]], breaks: Iterable[Mapping[str, str]]) -> None:
        """Hand reports to the workers, and contradictions to people."""
        self._exchange(
            [add_request(keys.REPORTS, report) for report in reports]
            + [add_request(keys.BREAKS, one, limit=BREAKS_LIMIT) for one in breaks]
        )

    def settle(self, finished: Sequence[Finished], working: Iterable[Record]) -> None:
        """After the publishing: finished requests are remembered, then no longer outstanding; others are updated."""
        self._exchange(
            [
                pack("SET", keys.finished_request(one.record.request.id), one.to_json(), "PX", self._finished_keep_ms)
                for one in finished
            ]
            + [pack("HDEL", keys.OUTSTANDING, one.record.request.id) for one in finished]
            + list(map(_replace, working))
        )

    def _exchange(self, commands: Sequence[bytes]) -> list[Any]:
        answers = self._pipe.exchange(commands) if commands else []
        for answer in answers:
            failure = refused(answer)
            if failure is not None:
                raise failure
        return answers


def published(report: Mapping[str, str]) -> bytes:
    """The request that hands a report to the workers."""
    return add_request(keys.REPORTS, report)


def _known(request_id: str, outstanding: bytes | None, finished: bytes | None) -> Known:
    # Finished wins: a request is taken off the outstanding ones last, and may be found in both.
    for found, parse in ((finished, parse_finished), (outstanding, parse_record)):
        if found is None:
            continue
        try:
            known: Known = parse(text(found))
        except Refused as failure:
            log.error("request_unreadable", request_id=request_id, code=failure.code, reason=str(failure))
            continue
        return known
    return None


def _replace(record: Record) -> bytes:
    return pack("EVAL", _REPLACE, 1, keys.OUTSTANDING, record.request.id, record.to_json())
