"""Bringing about once more what follows from copies that were made before their engine died."""

from collections.abc import Sequence

import structlog

from copyrisk.derived import copy_id
from copyrisk.errors import Refused
from copyrisk.orders import Event, State
from copyrisk.records import read_order
from copyrisk.situation import Outcome
from copyrisk.steps import request_words
from copyrisk.store.changes import Cause, change_of
from copyrisk.store.decisions import Decision
from copyrisk.store.effects import Effects, Waiting
from copyrisk.store.followers import follower_account
from copyrisk.store.functions import AccountRead, parse_read, read_request, refused
from copyrisk.store.pipe import Pipe

log = structlog.get_logger(__name__)

_AT_ONCE = 500


class Redelivery:
    """Reads such copies and brings about what follows from them, as of the version that made them."""

    def __init__(self, pipe: Pipe, effects: Effects) -> None:
        self._pipe, self._effects = pipe, effects

    def bring_about(self, decision: Decision, places: Sequence[int]) -> None:
        """Bring about once more what follows from copies at these places of a decision.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        for start in range(0, len(places), _AT_ONCE):
            part = places[start : start + _AT_ONCE]
            accounts = [follower_account(decision.rows["follower"][place]) for place in part]
            ids = [copy_id(decision.order_id, account) for account in accounts]
            asked = [read_request(account, own, "-") for account, own in zip(accounts, ids, strict=True)]
            requests: list[bytes] = []
            for place, account, own, reply in zip(part, accounts, ids, self._pipe.exchange(asked), strict=True):
                if refused(reply) is None:
                    requests += self._effects_of(decision, place, parse_read(account, reply), own)
            for reply in self._pipe.exchange(requests):
                failure = refused(reply)
                if failure is not None:
                    log.error("effect_failed", order=decision.order_id, reason=str(failure))

    def _effects_of(self, decision: Decision, place: int, read: AccountRead, own: str) -> list[bytes]:
        account = read.account
        try:
            order = read_order(account, own, read.order, read.record or None)
        except Refused:
            return []
        if order is None or not order.made_version:
            return []
        assert decision.made is not None
        decision.made["version"][place] = order.made_version
        # As of the version that made it: whatever happened to it since has a later one, and holds.
        change = change_of(read, Outcome(Event.OPENED, order), Cause(decision.header["event"], "copy"))
        version = str(order.made_version)
        said = change.follows["event"] | {"event_id": f"{account}:{version}", "version": version}
        follows = {**change.follows, "version": version, "event": said, "holds": True}
        request = order.request_of("open", "place")
        if request is not None and order.state in (State.OPENING, State.PLACING):
            follows["request"] = {**request_words(order, request), "ts": str(read.time_ms)}
        return self._effects.requests(Waiting(account, b"", follows))
