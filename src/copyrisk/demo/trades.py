"""What has become of orders, told from the event stream."""

import json
from collections import Counter, deque

from copyrisk import keys
from copyrisk.errors import StoreError
from copyrisk.store.functions import text, texts
from copyrisk.store.pipe import Pipe, pack

_AT_ONCE, _SHOWN = 2_000, 4
_CLOSED_BY = ("stop_loss", "take_profit", "master")
_OF_STATUS = {"OPEN": "open", "CLOSED": "closed", "PENDING": "pending", "QUEUED": "sent"}


class Trades:
    """Follows events.

    Attributes
    ----------
    counts : Counter
        Events by what they say of the order: `opened`, `closed`, `refused`, ...
    latest : deque of str
        The last few, in words.
    """

    def __init__(self, pipe: Pipe) -> None:
        self._pipe, self._last = pipe, "0-0"
        self.counts: Counter[str] = Counter()
        self.latest: deque[str] = deque(maxlen=_SHOWN)

    def follow(self) -> None:
        """Take what happened since the last call; a server that does not answer now will at the next."""
        try:
            (reply,) = self._pipe.exchange([pack("XRANGE", keys.EVENTS, f"({self._last}", "+", "COUNT", _AT_ONCE)])
        except StoreError:
            return
        for entry_id, words in () if isinstance(reply, Exception) else reply:
            self._last = text(entry_id)
            self._take(texts(words))

    def _take(self, event: dict[str, str]) -> None:
        who = f"{event.get('user_type')}:{event.get('user_id')}"
        if event.get("event") == "refused":
            self.counts["refused"] += 1
            self.latest.append(f"{who}  {event.get('type')} refused: {event.get('code')}")
            return
        order = json.loads(event.get("order", "{}"))
        status = order.get("order_status", "")
        reason = order.get("reason", "")
        by = f" by {reason.replace('_', ' ')}" if status == "CLOSED" and reason in _CLOSED_BY else ""
        is_level, is_copy = event.get("type") in ("stop_loss", "take_profit"), event.get("type") == "copy"
        word = "protected" if is_level else "copied" if is_copy else _OF_STATUS.get(status, status.lower()) + by
        self.counts[word] += 1
        price = order.get("close_price") if status == "CLOSED" else order.get("order_price")
        result = f"  {float(order['net_profit']):+,.2f} USD" if status == "CLOSED" else ""
        self.latest.append(
            f"{who}  {order.get('order_type')} {order.get('order_quantity')} {order.get('symbol')} at {price} "
            f"{status.lower()}{by}{result}"
        )

    def line(self) -> str:
        """The counts, in words."""
        return "  ".join(f"{word} {count:,}" for word, count in sorted(self.counts.items())) or "none yet"
