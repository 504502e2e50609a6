"""What operators do about masters and followers: relationships begun, paused, resumed, ended, listed and checked."""

import argparse
import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from copyrisk import fields
from copyrisk.auditing import record_act
from copyrisk.errors import ConfigError
from copyrisk.following import (
    COPY_STATUS,
    SETTING_NAMES,
    WALLET_BALANCE,
    FollowRequest,
    Outcome,
    check_master,
)
from copyrisk.gateway.messages import printable
from copyrisk.roles import client_of, open_database
from copyrisk.settings import Settings
from copyrisk.store import library
from copyrisk.store.enrolment import follow
from copyrisk.store.pipe import Pipe
from copyrisk.store.relation_check import Difference, check_relations
from copyrisk.store.relation_repair import repair
from copyrisk.store.relation_steps import portions
from copyrisk.store.relation_views import relations_of
from copyrisk.store.relations import followers_of, pause, related_to, resume, unfollow
from copyrisk.terms import AccountType

if TYPE_CHECKING:
    from copyrisk.sql.database import Database

_FILE_BYTES = 256 << 20
_SHOWN_CHARS = 4_000
_FOLLOWER, _INVESTMENT = "follower", "investment"
_COLUMNS = (_FOLLOWER, _INVESTMENT, "account_number", "email", *SETTING_NAMES)
_SHOWN_CONFIG = (COPY_STATUS, "multiplier", WALLET_BALANCE)
_SHOWN_PORTFOLIO = (fields.EQUITY, fields.CALC_STATUS)


def add_relationship_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`follow`, `unfollow`, `pause`, `resume`, `followers`."""
    begin = commands.add_parser("follow", help="have followers copy a master")
    begin.add_argument("master", metavar="MASTER")
    begin.add_argument("--investment", metavar="USD", help="what followers without an account begin with")
    begin.add_argument("--multiplier", metavar="X", help="short for --set multiplier=X")
    begin.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a copy setting")
    end = commands.add_parser("unfollow", help="end what is between followers and their masters")
    end.add_argument("--keep-open", action="store_true", help="although they have open copies, which stay open")
    hold = commands.add_parser("pause", help="have followers get no new copies")
    again = commands.add_parser("resume", help="have paused followers copy again")
    for parser in (begin, end, hold, again):
        parser.add_argument("followers", nargs="*", metavar="FOLLOWER")
        parser.add_argument("--file", type=Path, metavar="CSV", help="one id a line, or columns with a header")
    look = commands.add_parser("followers", help="who follows a master; or whether all records of followers agree")
    look.add_argument("master", nargs="?", metavar="MASTER")
    look.add_argument("--json", action="store_true", help="a JSON array instead of a table")
    # `--check` of the program itself is another one.
    look.add_argument("--check", action="store_true", dest="check_all", help="hold all records against each other")
    look.add_argument("--repair", action="store_true", help="with --check: put right what differs")


class _Opened(NamedTuple):
    """What a command works on."""

    pipe: Pipe
    database: "Database | None"


@contextmanager
def _opened(settings: Settings, what: str) -> Iterator[_Opened]:
    if settings.redis.url is None:
        raise ConfigError(f"{what}: say which server with --redis")
    client = client_of(settings, settings.redis.url)
    database = open_database(settings)
    pipe = Pipe(client)
    try:
        library.load(client)
        yield _Opened(pipe, database)
    finally:
        pipe.close()
        client.close()
        if database is not None:
            database.close()


def _follow(settings: Settings, options: argparse.Namespace) -> int:
    given = _settings_of(options)
    investment = options.investment
    if not options.followers and options.file is None:
        raise ConfigError("say who is to follow: ids, or --file")
    requests = [FollowRequest(name, investment, settings=given) for name in options.followers]
    for row in _rows(options.file):
        own = {name: row[name] for name in SETTING_NAMES if row.get(name)}
        amount = row.get(_INVESTMENT) or investment
        identity = row.get("account_number", ""), row.get("email", "")
        requests.append(FollowRequest(row[_FOLLOWER], amount, *identity, settings={**given, **own}))
    with _opened(settings, "follow") as on:
        _record(on, "follow", [request.follower for request in requests], master=options.master, settings=given)
        return _told(follow(on.pipe, options.master, requests, database=on.database), f"follow {options.master}")


def _settings_of(options: argparse.Namespace) -> dict[str, str]:
    given: dict[str, str] = {} if options.multiplier is None else {"multiplier": options.multiplier}
    for pair in options.set:
        name, separator, value = pair.partition("=")
        if not separator or name not in SETTING_NAMES:
            raise ConfigError(f"--set takes NAME=VALUE, not {pair[:80]!a}; names are {', '.join(SETTING_NAMES)}")
        given[name] = value
    return given


def _unfollow(settings: Settings, options: argparse.Namespace) -> int:
    names = _names(options)
    with _opened(settings, "unfollow") as on:
        _record(on, "unfollow", names, keep_open=options.keep_open)
        return _told(unfollow(on.pipe, names, keep_open=options.keep_open, database=on.database), "follow nobody now")


def _pause(settings: Settings, options: argparse.Namespace) -> int:
    names = _names(options)
    with _opened(settings, "pause") as on:
        _record(on, "pause", names)
        return _told(pause(on.pipe, names, database=on.database), "paused")


def _resume(settings: Settings, options: argparse.Namespace) -> int:
    names = _names(options)
    with _opened(settings, "resume") as on:
        _record(on, "resume", names)
        return _told(resume(on.pipe, names, database=on.database), "copy again")


def _record(on: _Opened, act: str, followers: Sequence[str], **said: Any) -> None:
    accounts = [name if ":" in name else f"{AccountType.FOLLOWER}:{name}" for name in followers]
    record_act(on.pipe, act, accounts=accounts, **said)


def _names(options: argparse.Namespace) -> list[str]:
    names = [*options.followers, *(row[_FOLLOWER] for row in _rows(options.file))]
    if not names:
        raise ConfigError("say which followers: ids, or --file")
    return names


def _rows(path: Path | None) -> list[dict[str, str]]:
    """Rows of a file by column; without a header its only column is the follower.

    Raises
    ------
    ConfigError
    """
    if path is None:
        return []
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES + 1)
        if len(data) > _FILE_BYTES:
            raise ConfigError(f"{path}: more than {_FILE_BYTES >> 20} MB")
        lines = [
            [cell.strip() for cell in row]
            for row in csv.reader(io.StringIO(data.decode("utf-8-sig")), strict=True, skipinitialspace=True)
        ]
    except (OSError, UnicodeDecodeError, csv.Error) as failure:
        raise ConfigError(f"{path} cannot be read: {printable(str(failure))}") from None
    lines = [row for row in lines if any(row)]
    header = lines.pop(0) if lines and _FOLLOWER in lines[0] else [_FOLLOWER]
    unknown = [name for name in header if name not in _COLUMNS]
    if unknown or len(set(header)) != len(header):
        raise ConfigError(f"{path}: columns may be {', '.join(_COLUMNS)}, each once; not {unknown[:1] or header!a}")
    for number, row in enumerate(lines, 1):
        if len(row) != len(header):
            raise ConfigError(f"{path}: row {number} has {len(row)} cells, not {len(header)}")
    return [dict(zip(header, row, strict=True)) for row in lines]


def _told(outcomes: Sequence[Outcome], done: str) -> int:
    for outcome in outcomes:
        line = f"{outcome.follower[:80]}  {outcome.code}"
        if outcome.message:
            line += f": {outcome.message}"
        if outcome.is_done and outcome.open_copies:
            line += f"  copies left open: {', '.join(outcome.open_copies)}"
        if outcome.behind:
            line += f"  not in the database yet ({outcome.behind})"
        print(printable(line, _SHOWN_CHARS))
    count = sum(outcome.is_done for outcome in outcomes)
    print(printable(f"{count} {done}, {len(outcomes) - count} refused"))
    return 0 if count == len(outcomes) else 1


def _followers(settings: Settings, options: argparse.Namespace) -> int:
    if options.repair and not options.check_all:
        raise ConfigError("--repair goes with --check")
    if (options.master is None) is not options.check_all:
        raise ConfigError("say whose followers: followers MASTER; or followers --check")
    with _opened(settings, "followers") as on:
        if options.check_all:
            return _check(on, is_repair=options.repair, as_json=options.json)
        return _list(on, check_master(options.master), as_json=options.json)


def _list(on: _Opened, master: str, *, as_json: bool) -> int:
    active = set(followers_of(on.pipe, master))
    names = sorted({*related_to(on.pipe, master), *active})
    rows = []
    for some in portions(names):
        for one in relations_of(on.pipe, some):
            config = {name: one.config.get(name, "") for name in _SHOWN_CONFIG}
            portfolio = {name: one.portfolio.get(name, "") for name in _SHOWN_PORTFOLIO}
            rows.append({_FOLLOWER: one.follower, "in_set": one.follower in active, **config, **portfolio})
    if as_json:
        print(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        states = (f"{key} {row[key] or '-'}" for key in (*_SHOWN_CONFIG, *_SHOWN_PORTFOLIO))
        print(printable(f"{row[_FOLLOWER]}  {'  '.join(states)}"))
    print(f"{len(active)} copy {master} now, {len(names) - len(active)} do not")
    return 0


def _check(on: _Opened, *, is_repair: bool, as_json: bool) -> int:
    found = check_relations(on.pipe, on.database)
    if as_json:
        print(json.dumps([_as_json(one) for one in found], indent=1))
    else:
        for one in found:
            print(printable(f"{one.subject}  {','.join(one.codes)}  {one.seen}  -> {one.mend}", _SHOWN_CHARS))
    if not is_repair:
        if not as_json:
            print(f"{len(found)} differences")
        return 1 if found else 0
    if found:
        record_act(on.pipe, "followers --repair", differences=[_as_json(one) for one in found])
    left = repair(on.pipe, found, on.database)
    if not as_json:
        for one in left:
            print(printable(f"{one.subject}  not repaired: it has changed meanwhile, or cannot be changed now"))
        print(f"{len(found) - len(left)} repaired, {len(left)} left")
    return 1 if left else 0


def _as_json(one: Difference) -> dict[str, object]:
    return {"subject": one.subject, "codes": list(one.codes), "seen": one.seen, "mend": one.mend}


RELATIONSHIPS: dict[str, Callable[[Settings, argparse.Namespace], int]] = {
    "follow": _follow,
    "unfollow": _unfollow,
    "pause": _pause,
    "resume": _resume,
    "followers": _followers,
}
