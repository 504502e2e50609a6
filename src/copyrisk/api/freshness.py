"""What is true of an account now: whether there is one, and whether its stored figures are those of now."""

from typing import TYPE_CHECKING, NamedTuple

from copyrisk import fields, keys
from copyrisk.api.answers import ApiError
from copyrisk.identifiers import Account
from copyrisk.store.copy_states import ask
from copyrisk.store.functions import text
from copyrisk.store.pipe import Pipe, pack

if TYPE_CHECKING:
    from copyrisk.sql.database import Database

#: Without a tick for so long nobody values accounts.
SILENT_MS = 10_000
_MS_CHARS = 15


def check_exists(pipe: Pipe, database: "Database | None", account: Account) -> None:
    """Raise `ApiError` (`unknown_account`) if there is no such account, here or in the database; raises as `Pipe.ask`.

    What the database cannot tell now is an error, and no account that there is not.
    """
    found = pipe.ask(pack("EXISTS", keys.config(account), keys.orders_index(account)))[0]
    if not found and (database is None or database.account(account) is None):
        raise ApiError(f"there is no account {account}", code="unknown_account")


class Tick(NamedTuple):
    """The daemon's last tick, and the server's time when it was asked for; `ts_ms` is `None` if there was none."""

    ts_ms: int | None
    now_ms: int

    @property
    def is_silent(self) -> bool:
        """Whether it was too long ago for stored figures to be those of now."""
        return self.ts_ms is None or self.now_ms - self.ts_ms > SILENT_MS


def read_tick(pipe: Pipe) -> Tick:
    """The last tick; raises as `Pipe.ask`."""
    said, (seconds, microseconds) = ask(pipe, [pack("HGET", keys.TICK, fields.TS), pack("TIME")])
    return Tick(whole_ms(text(said)), int(seconds) * 1000 + int(microseconds) // 1000)


def whole_ms(said: str | None) -> int | None:
    """A time as it is stored; `None` for what is none."""
    return int(said) if said and said.isascii() and said.isdecimal() and len(said) <= _MS_CHARS else None
