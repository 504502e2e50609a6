"""Dead letters: entries that failed again and again; listed, and put back where they came from."""

import json
from dataclasses import dataclass
from typing import Any

import redis

from copyrisk import keys
from copyrisk.errors import StoreError
from copyrisk.store.connection import store_error
from copyrisk.store.effects import add_request
from copyrisk.store.functions import text, texts
from copyrisk.store.pipe import Pipe, pack

_LISTED = 1_000


@dataclass(frozen=True, slots=True)
class Letter:
    """One of them; `fields` is the entry as it came."""

    id: str
    stream: str
    entry_id: str
    code: str
    reason: str
    fields: dict[str, str]


def list_letters(pipe: Pipe, count: int = _LISTED) -> list[Letter]:
    """The oldest dead letters."""
    (reply,) = pipe.exchange([pack("XRANGE", keys.DEAD_LETTERS, "-", "+", "COUNT", count)])
    return [_letter(text(entry_id), texts(words)) for entry_id, words in _checked(reply)]


def replay(pipe: Pipe, letter_id: str) -> Letter:
    """Put an entry back, then take the letter away; a command keeps the id it first came under.

    Raises
    ------
    StoreError
        `no_such_letter`, or `letter_unreadable`: it does not say which of our streams it came from.
    """
    (reply,) = pipe.exchange([pack("XRANGE", keys.DEAD_LETTERS, letter_id, letter_id)])
    found = _checked(reply)
    if not found:
        raise StoreError(f"there is no dead letter {letter_id}", code="no_such_letter")
    letter = _letter(letter_id, texts(found[0][1]))
    if not letter.fields or not keys.is_own_stream(letter.stream):
        raise StoreError(f"dead letter {letter_id} cannot be put back", code="letter_unreadable")
    stream, said = letter.stream, letter.fields
    if stream not in (keys.REQUESTS, keys.HISTORY, keys.NOTICES):
        stream = keys.REPLAYED  # to the workers, under the id that it first came under
        if letter.stream in (keys.COMMANDS, keys.REPORTS):  # there only outsiders write
            origin = {"_stream": letter.stream, "_id": letter.entry_id}
            said = {name: value for name, value in said.items() if not name.startswith("_")} | origin
    for answer in pipe.exchange([add_request(stream, said), pack("XDEL", keys.DEAD_LETTERS, letter_id)]):
        _checked(answer)
    return letter


def _letter(letter_id: str, said: dict[str, str]) -> Letter:
    try:
        fields = json.loads(said.get("fields", ""))
    except ValueError:
        fields = {}
    is_flat = isinstance(fields, dict) and all(isinstance(value, str) for value in fields.values())
    shown = {name: said.get(name, "") for name in ("stream", "entry_id", "code", "reason")}
    return Letter(letter_id, **shown, fields=fields if is_flat else {})


def _checked(reply: Any) -> Any:
    if isinstance(reply, Exception):
        raise store_error(redis.ResponseError(str(reply)))
    return reply
