"""Asking the workers: a command goes onto their stream, once, and is answered by the event that they announce of it.

What was sent and not answered is unknown, never refused and never sent again: later the idempotency key finds its
answer.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from copyrisk import keys, vitals
from copyrisk.api.answers import ApiError
from copyrisk.api.line import Line, Lost, Mark
from copyrisk.commands import Command, parse_command
from copyrisk.errors import CopyriskError, StoreError, StoreUnavailable
from copyrisk.store.changes import parse_answer
from copyrisk.store.effects import add_request, ask_request
from copyrisk.store.functions import FUNCTIONS_MISSING
from copyrisk.store.pipe import pack
from copyrisk.vitals import Vitals

#: The id of a command's entry is not known before it is one; its order id follows from the idempotency key.
_NO_ENTRY = "0-0"
#: How long the one look for a stored answer may take.
_LOOK_S = 0.5


class Answered(NamedTuple):
    """What became of a command.

    Attributes
    ----------
    event : mapping or None
        The fields of its event; `None`: not known (yet).
    """

    order_id: str
    idempotency_key: str
    event: Mapping[str, str] | None


class Replayed(CopyriskError):
    """The request was made before; nothing was done now."""

    code = "replayed_request"


@dataclass(eq=False, slots=True)
class _Waiter:
    """Who waits for the answer to a command."""

    command: Command
    events: asyncio.Queue[Mapping[str, str]] = field(default_factory=asyncio.Queue)


def _packed(fields: Mapping[str, str], mark: Mark | None) -> bytes:
    return add_request(keys.COMMANDS, fields) if mark is None else ask_request(*mark, fields)


class Asker:
    """Asks the workers.

    Parameters
    ----------
    line : Line
        That sends nothing again by itself.
    timeout_ms : int
        How long an answer is waited for.
    waiting_limit : int
        How many may wait at once; half of them of one caller.
    load : callable
        Has the server hold the functions again that it has lost.
    seen : Vitals or None
        Where waiting requests and unknown outcomes are counted.
    """

    def __init__(
        self,
        line: Line,
        *,
        timeout_ms: int,
        waiting_limit: int,
        load: Callable[[], Awaitable[None]],
        seen: Vitals | None = None,
    ) -> None:
        self._load = load
        self._line, self._timeout_s, self._limit = line, timeout_ms / 1000.0, waiting_limit
        self._seen = seen or Vitals()
        self._waiters: dict[tuple[str, str, str], list[_Waiter]] = {}
        self._count, self._by = 0, Counter[str]()

    @property
    def waiting(self) -> int:
        """How many wait for an answer now."""
        return self._count

    def take(self, _: str, fields: Mapping[str, str]) -> None:
        """Take an entry of `copyrisk:events`: whoever waits for its idempotency key hears of it."""
        if not self._waiters or not fields.get("idempotency_key"):
            return
        of_whom = (fields.get("user_type", ""), fields.get("user_id", ""), fields["idempotency_key"])
        for waiter in self._waiters.get(of_whom, ()):
            waiter.events.put_nowait(fields)

    async def ask(self, fields: Mapping[str, str], mark: Mark | None = None) -> Answered:
        """Have a command carried out, and return what came of it; it must have an idempotency key.

        Parameters
        ----------
        mark : Mark or None
            Set with it; if it was there, nothing is done.

        Raises
        ------
        InvalidId, Refused
            As `parse_command`; nothing was sent.
        ApiError
            `missing_idempotency_key`, `too_busy`: nothing sent. `idempotency_conflict`: another command had its key.
        Replayed
            The mark was there.
        StoreError, StoreUnavailable
            The command did not get to the server, or was refused there: nothing was changed.
        """
        command = parse_command(_NO_ENTRY, fields)
        if not command.client_key:
            raise ApiError("a change needs an idempotency key", code="missing_idempotency_key")
        if self._count >= self._limit or self._by[command.requested_by] >= max(self._limit // 2, 1):
            raise ApiError("too many changes are under way", code="too_busy", headers={"Retry-After": "1"})
        waiter = _Waiter(command)
        of_whom = (command.account.type.value, command.account.id, command.client_key)
        self._waiters.setdefault(of_whom, []).append(waiter)
        self._changed_by(1, command)
        try:
            event = await self._answer(waiter, _packed(fields, mark))
        finally:
            self._changed_by(-1, command)
            others = self._waiters[of_whom]
            others.remove(waiter)
            if not others:
                del self._waiters[of_whom]
        if event is None:
            self._seen.count(vitals.API_UNKNOWN)
        return Answered(command.order_id, command.client_key, event)

    def _changed_by(self, change: int, command: Command) -> None:
        self._count += change
        self._by[command.requested_by] += change
        if not self._by[command.requested_by]:
            del self._by[command.requested_by]
        self._seen.set(vitals.API_WAITING, self._count)

    async def _answer(self, waiter: _Waiter, packed: bytes) -> Mapping[str, str] | None:
        request = self._line.send(packed)
        try:
            async with asyncio.timeout(self._timeout_s):
                try:
                    entry_id: str = (await request.reply).decode()
                except Lost:
                    entry_id = _NO_ENTRY  # perhaps it is there; then its event comes
                if not entry_id:
                    raise Replayed("this request was sent before")
                return await self._event(waiter, entry_id)
        except StoreError as failure:
            if failure.code == FUNCTIONS_MISSING:
                await self._load()  # for the next one
            raise
        except TimeoutError:
            if not request.is_sent:
                raise StoreUnavailable("the server could not be reached in time") from None
        return await self._stored(waiter.command)

    async def _event(self, waiter: _Waiter, entry_id: str) -> Mapping[str, str]:
        """The event that answers; one of another entry with the same key does so if its command was the same."""
        while True:
            event = await waiter.events.get()
            if event.get("command_id") == entry_id:
                return event
            stored = await self._stored(waiter.command)
            if stored is not None:
                return stored

    async def _stored(self, command: Command) -> Mapping[str, str] | None:
        """What the command, or one like it, was answered before; `None` if it was not, or that cannot be read now."""
        request = self._line.send(pack("GET", keys.answer(command.account, command.key)))
        try:
            async with asyncio.timeout(_LOOK_S):
                found = await request.reply
        except (TimeoutError, StoreError):
            return None
        if not found:
            return None
        body, event = parse_answer(found.decode())
        if body != command.body:
            raise ApiError("another command had this idempotency key", code="idempotency_conflict")
        return event
