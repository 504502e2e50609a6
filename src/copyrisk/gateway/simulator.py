"""A simulated liquidity provider: a process that takes requests, fills them at quotes, and errs by a script.

It speaks the protocol of `docs/gateway.md` on one port, with its client and with tests that command it. Its books live
as long as the process, whatever happens to connections.
"""

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog

from copyrisk.decimals import parse_decimal
from copyrisk.errors import CopyriskError, Refused
from copyrisk.gateway.lines import LinkLost
from copyrisk.gateway.link import PROTOCOL_VERSION
from copyrisk.gateway.messages import parse_request
from copyrisk.gateway.peers import Peer, Peers
from copyrisk.gateway.quotes import QuoteSource
from copyrisk.gateway.script import FaultScript, parse_quote, parse_script
from copyrisk.gateway.venue import Venue, VenueOrder, is_crossed
from copyrisk.identifiers import check_order_id, check_symbol
from copyrisk.vitals import Vitals

log = structlog.get_logger(__name__)

_LONGEST_WAIT_S = 0.1
_HEARTBEAT_MS = (10, 60_000)


@dataclass(frozen=True, slots=True)
class SimulatorSettings:
    """How the simulator runs.

    Attributes
    ----------
    port : int
        0: any free one.
    redis_url : str or None
        Where quotes are, for symbols to which the script gives none.
    poll_ms : int
        So often quotes are looked at while orders rest.
    """

    host: str = "127.0.0.1"
    port: int = 0
    redis_url: str | None = None
    script: FaultScript = field(default_factory=FaultScript)
    poll_ms: int = 5


def _say(text: str) -> None:
    print(text, flush=True)


def run_simulator(
    settings: SimulatorSettings,
    stop: threading.Event,
    *,
    announce: Callable[[str], None] = _say,
    seen: Vitals | None = None,
) -> None:
    """Be a provider until `stop` is set.

    Parameters
    ----------
    announce : callable
        Is told `listening on host:port` once clients can connect.

    Raises
    ------
    ConfigError
        `cannot_listen`.
    StoreError
        `bad_redis_url`.
    """
    simulator = Simulator(settings)
    try:
        announce(f"listening on {settings.host}:{simulator.port}")
        while not stop.is_set():
            simulator.turn(_LONGEST_WAIT_S)
            if seen is not None:
                seen.step_done()
    finally:
        simulator.close()


class Simulator:
    """The provider: its books, its connections, and what is due when."""

    def __init__(self, settings: SimulatorSettings) -> None:
        self._venue, self._script = Venue(), settings.script
        self._quotes = QuoteSource(settings.script.quotes, settings.redis_url)
        self._peers = Peers(settings.host, settings.port)
        self._poll_s, self._polled_s = settings.poll_ms / 1e3, 0.0
        self._tries: dict[str, int] = {}
        self._unacknowledged: dict[str, VenueOrder] = {}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._peers.port

    def close(self) -> None:
        """Close all connections; the books are gone."""
        self._peers.close()
        self._quotes.close()

    def turn(self, longest_s: float) -> None:
        """Wait, at most so long, for something to do, and do it."""
        now_s = time.monotonic()
        if self._venue.resting:
            longest_s = min(longest_s, max(0.0, self._polled_s + self._poll_s - now_s))
        if self._due:
            longest_s = min(longest_s, max(0.0, self._due[0][0] - now_s))
        for peer, message in self._peers.wait(longest_s):
            try:
                self._answer(peer, message)
            except CopyriskError as failure:
                self._peers.drop(peer, LinkLost(str(failure), code=failure.code))
        if self._venue.resting and time.monotonic() >= self._polled_s + self._poll_s:
            self._polled_s = time.monotonic()
            self._trigger()
        while self._due and self._due[0][0] <= time.monotonic():
            heapq.heappop(self._due)[2]()
        self._peers.tend()

    def _after(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._due, (time.monotonic() + seconds, next(self._numbers), what))

    # ---- what clients say

    def _answer(self, peer: Peer, message: Mapping[str, Any]) -> None:
        kind = message.get("type")
        if "control" in message:
            self._peers.put(peer, self._controlled(message))
        elif kind == "hello":
            self._welcome(peer, message)
        elif not peer.session:
            raise Refused("nothing is done without a session", code="no_session")
        elif kind == "request":
            said = message.get("request")
            self._take(peer, said if isinstance(said, dict) else {})
        elif kind == "query":
            self._tell(peer, check_order_id(_text(message, "request_id")))
        elif kind == "acknowledge":
            self._acknowledge(_text(message, "request_id"), message.get("sequence"))
        elif kind != "heartbeat":
            raise Refused(f"a message of unknown type: {str(kind)[:40]!a}", code="bad_message")

    def _welcome(self, peer: Peer, message: Mapping[str, Any]) -> None:
        name, beat_ms = check_order_id(_text(message, "session")), message.get("heartbeat_ms")
        if message.get("version") != PROTOCOL_VERSION or type(beat_ms) is not int or peer.session:
            raise Refused("a logon that makes no sense", code="bad_message")
        if self._peers.with_session() is not None:  # the books are those of one client
            refusal = {"type": "refused", "code": "session_in_use", "reason": "the session is in use"}
            self._peers.put(peer, refusal)
            return
        lowest, highest = _HEARTBEAT_MS
        peer.session, peer.beat_s = name, min(highest, max(lowest, beat_ms)) / 1e3
        self._peers.put(peer, {"type": "welcome", "version": PROTOCOL_VERSION})
        for order in list(self._unacknowledged.values()):
            for report in order.reports[order.acknowledged :]:
                self._peers.put(peer, report)

    def _take(self, peer: Peer, said: Mapping[str, Any]) -> None:
        request = parse_request({name: value for name, value in said.items() if isinstance(value, str)})
        if request.id in self._venue.orders:  # whatever it says this time: it was taken
            self._tell(peer, request.id)
            return
        tries = self._tries[request.id] = self._tries.get(request.id, 0) + 1
        if self._script.happens("swallow", request.id, tries):
            return
        order = self._venue.take(request, self._script)
        self._after(self._script.delay_s(request.id, 0), partial(self._step, order))

    def _tell(self, peer: Peer, request_id: str) -> None:
        order = self._venue.orders.get(request_id)
        if order is None:
            self._peers.put(peer, {"type": "not_known", "request_id": request_id})
        elif order.reports:
            self._peers.put(peer, order.reports[-1])
        else:
            self._peers.put(peer, {"type": "working", "request_id": request_id})

    def _acknowledge(self, request_id: str, sequence: object) -> None:
        order = self._venue.orders.get(request_id)
        if order is not None and type(sequence) is int and sequence <= len(order.reports):
            order.acknowledged = max(order.acknowledged, sequence)
            if order.acknowledged == len(order.reports):
                self._unacknowledged.pop(request_id, None)

    # ---- what becomes of orders

    def _step(self, order: VenueOrder) -> None:
        quote = self._quotes.read([order.request.symbol]).get(order.request.symbol)
        self._report(self._venue.advance(order, quote, self._script, _now_ms()))
        waits = order.is_resting and not order.is_triggered
        if not order.is_done and not waits and not self._script.manual:
            self._after(self._script.delay_s(order.request.id, order.steps), partial(self._step, order))

    def _trigger(self) -> None:
        waiting = [order for order in self._venue.resting.values() if not order.is_triggered]
        quotes = self._quotes.read({order.request.symbol for order in waiting})
        for order in waiting:
            quote = quotes.get(order.request.symbol)
            if quote is not None and not self._script.manual and is_crossed(order, quote):
                order.is_triggered = True
                self._step(order)

    def _report(self, orders: Sequence[VenueOrder]) -> None:
        for order in orders:
            self._unacknowledged[order.request.id] = order
            self._deliver(order, order.reports[-1])

    def _deliver(self, order: VenueOrder, report: dict[str, Any]) -> None:
        """Send a report to the client, unless something goes wrong."""
        request_id, sequence, script = order.request.id, int(report["sequence"]), self._script
        peer = self._peers.with_session()
        if peer is None or self._peers.is_silent(peer):
            return  # it is repeated in the next session, or told when asked for
        if script.happens("disconnect", request_id, sequence):
            self._peers.drop(peer)
        elif script.happens("reorder", request_id, sequence):
            self._after(script.reorder_ms / 1e3, partial(self._send, report))
        elif not script.happens("drop", request_id, sequence):
            self._send(report)
            if script.happens("duplicate", request_id, sequence):
                self._send(report)
        if script.happens("silent", request_id, sequence):
            self._peers.silence(peer, script.silent_ms / 1e3)

    def _send(self, report: Mapping[str, Any]) -> None:
        peer = self._peers.with_session()
        if peer is not None and not self._peers.is_silent(peer):
            self._peers.put(peer, report)

    # ---- what tests and people command

    def _controlled(self, message: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return {"type": "control", "ok": True, **self._control(message)}
        except CopyriskError as failure:
            return {"type": "control", "ok": False, "code": failure.code, "reason": str(failure)}

    def _control(self, message: Mapping[str, Any]) -> dict[str, Any]:
        kind = message["control"]
        if kind == "book":
            return self._venue.dump()
        if kind == "quote":
            quote = parse_quote(message.get("bid"), message.get("ask"))
            if quote is None:
                raise Refused("bid and ask are no quote", code="bad_quote")
            self._quotes.fixed[check_symbol(_text(message, "symbol"))] = quote
        elif kind == "script":
            said = message.get("script")
            self._script = parse_script(said if isinstance(said, dict) else {"script": said})
            self._quotes.fixed.update(self._script.quotes)
        elif kind == "disconnect":
            peer = self._peers.with_session()
            if peer is not None:
                self._peers.drop(peer)
        elif kind in ("fill", "end"):
            self._command(str(kind), message)
        else:
            raise Refused("control is book, quote, script, disconnect, fill or end", code="bad_message")
        return {}

    def _command(self, kind: str, message: Mapping[str, Any]) -> None:
        order = self._venue.orders.get(_text(message, "request_id"))
        if order is None:
            raise Refused("no such request", code="unknown_request")
        if kind == "end":
            changed = self._venue.end(order, _now_ms(), _text(message, "reason")[:200])
        else:
            lots, price = (parse_decimal(_text(message, name)) for name in ("order_quantity", "price"))
            if lots is None or price is None or lots <= 0 or price <= 0:
                raise Refused("a fill needs order_quantity and price above 0", code="bad_message")
            changed = self._venue.fill(order, lots, price, _now_ms())
        self._report([changed])


def _text(message: Mapping[str, Any], name: str) -> str:
    """A text of a message, empty for anything else; no grammar takes an empty one."""
    value = message.get(name)
    return value if isinstance(value, str) else ""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
