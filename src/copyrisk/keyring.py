"""`keys`: make, list and revoke the keys that services sign with; and the master secret that all of them rest on."""

import argparse
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from copyrisk.api.scopes import parse_grant, parse_scopes
from copyrisk.api_sections import ApiSettings
from copyrisk.auditing import record_act
from copyrisk.errors import ConfigError, InvalidId
from copyrisk.gateway.messages import printable
from copyrisk.roles import client_of
from copyrisk.settings import Settings
from copyrisk.signing import MASTER_BYTES, MasterSecret, is_key_id, new_key_id
from copyrisk.store import library
from copyrisk.store.api_keys import BadRecord, KeyRecord, KeyState, add_record, parse_record, put_record, read_records
from copyrisk.store.pipe import Pipe

_DAY_MS = 86_400_000
_LONGEST_DAYS = 3_650
_NAME_CHARS = 80
_FILE_BYTES = 65_536
_SHOWN_CHARS = 4_000
_UNREADABLE = "unreadable"


def master_secret(settings: ApiSettings) -> MasterSecret:
    """The master secret that the settings name.

    Raises
    ------
    ConfigError
        `api_secret_missing`: there is none, or it is too short; `api_secret_exposed`: others may read its file;
        `api_secret_unreadable`.
    """
    if settings.secret is not None and settings.secret_file is not None:
        raise ConfigError("COPYRISK_API_SECRET and api.secret_file are both set: one of them")
    if settings.secret_file is not None:
        where, secret = settings.secret_file, _read_secret(Path(settings.secret_file))
    elif settings.secret is not None:
        where, secret = "COPYRISK_API_SECRET", settings.secret.encode("utf-8", "surrogateescape")
    else:
        raise ConfigError("there is no master secret: set api.secret_file", code="api_secret_missing")
    try:
        return MasterSecret(secret)
    except ValueError:
        raise ConfigError(
            f"{where}: a master secret has at least {MASTER_BYTES} bytes", code="api_secret_missing"
        ) from None


def _read_secret(path: Path) -> bytes:
    try:
        with open(
            os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb"
        ) as file:  # a pipe that nobody fills must not hold us
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise ConfigError(f"{path} is no file", code="api_secret_unreadable")
            if about.st_mode & 0o077:
                raise ConfigError(f"{path} may be read by others: chmod 600 {path}", code="api_secret_exposed")
            return file.read(_FILE_BYTES)
    except OSError as failure:
        raise ConfigError(f"{path}: {failure.strerror or failure}", code="api_secret_unreadable") from None


def add_key_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`keys new`, `keys list`, `keys revoke`."""
    parser = commands.add_parser("keys", help="the keys that services sign their HTTP requests with")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    new = actions.add_parser("new", help="make a key; its secret is shown this once")
    new.add_argument("--name", required=True, metavar="NAME", help="whose it is, for people")
    new.add_argument("--scopes", required=True, metavar="SCOPE,...", help="what it may do: docs/access.md")
    whom = "to whom: '*', 'TYPE:*', TYPE:ID"
    new.add_argument("--accounts", required=True, dest="granted", metavar="WHOM,...", help=whom)
    new.add_argument("--expires-days", type=int, metavar="DAYS", help=f"1 to {_LONGEST_DAYS}; otherwise never")
    known = actions.add_parser("list", help="all keys, without their secrets")
    for action in (new, known):
        action.add_argument("--json", action="store_true", dest="as_json", help="for programs")
    revoke = actions.add_parser("revoke", help="a key may do nothing from now on, for ever")
    revoke.add_argument("id", metavar="ID")


@contextmanager
def _opened(settings: Settings) -> Iterator[Pipe]:
    if settings.redis.url is None:
        raise ConfigError("keys: say which server with --redis")
    client = client_of(settings, settings.redis.url)
    pipe = Pipe(client)
    try:
        library.load(client)
        yield pipe
    finally:
        pipe.close()
        client.close()


def _new(settings: Settings, options: argparse.Namespace) -> int:
    master, record = master_secret(settings.api), _wanted(options)
    with _opened(settings) as pipe:
        about = {name: value for name, value in asdict(record).items() if name not in ("revoked_ms", "accounts")}
        record_act(pipe, "keys new", **about, granted=list(record.accounts))
        add_record(pipe, record, master)
    secret = master.secret_of(record.key_id)
    if options.as_json:
        print(json.dumps({"key_id": record.key_id, "secret": secret}))
    else:
        print(f"key id  {record.key_id}\nsecret  {secret}")
        print("the secret is not shown again; keep it where only the service reads it")
    return 0


def _wanted(options: argparse.Namespace) -> KeyRecord:
    if not 0 < len(options.name) <= _NAME_CHARS or not options.name.isprintable():
        raise ConfigError(f"--name is one line of at most {_NAME_CHARS} characters")
    days = options.expires_days
    if days is not None and not 1 <= days <= _LONGEST_DAYS:
        raise ConfigError(f"--expires-days takes a number from 1 to {_LONGEST_DAYS}")
    try:
        scopes = parse_scopes(word.strip() for word in options.scopes.split(","))
        grant = parse_grant(word.strip() for word in options.granted.split(","))
    except InvalidId as fault:
        raise ConfigError(str(fault), code=fault.code) from None
    now_ms = _now_ms()
    expires_ms = None if days is None else now_ms + days * _DAY_MS
    return KeyRecord(new_key_id(), options.name, tuple(sorted(scopes)), grant.words(), now_ms, expires_ms)


def _list(settings: Settings, options: argparse.Namespace) -> int:
    master, now_ms = master_secret(settings.api), _now_ms()
    with _opened(settings) as pipe:
        stored = read_records(pipe)
    rows = [_row(key_id, stored[key_id], master, now_ms) for key_id in sorted(stored)]
    if options.as_json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        if row["state"] == _UNREADABLE:
            print(printable(f"{row['key_id']}  {_UNREADABLE}: not written with this master secret", _SHOWN_CHARS))
            continue
        until = "never expires" if row["expires_ms"] is None else f"until {_day(row['expires_ms'])}"
        words = f"{','.join(row['scopes'])}  {','.join(row['accounts'])}  since {_day(row['made_ms'])}, {until}"
        print(printable(f"{row['key_id']}  {row['state']}  {row['name']}  {words}", _SHOWN_CHARS))
    print(f"{len(rows)} keys")
    return 0


def _row(key_id: str, text: bytes, master: MasterSecret, now_ms: int) -> dict[str, Any]:
    try:
        record = parse_record(key_id, text, master)
    except BadRecord:
        return {"key_id": key_id, "state": _UNREADABLE}
    return {**asdict(record), "state": record.state(now_ms).value}


def _revoke(settings: Settings, options: argparse.Namespace) -> int:
    master, key_id = master_secret(settings.api), options.id
    if not is_key_id(key_id):
        raise ConfigError(f"{key_id[:80]!a} is no key id", code="invalid_key_id")
    with _opened(settings) as pipe:
        stored = read_records(pipe).get(key_id)
        if stored is None:
            raise ConfigError(f"there is no key {key_id}", code="unknown_key")
        now_ms = _now_ms()
        try:
            record = parse_record(key_id, stored, master)
        except BadRecord:  # nobody can use it; put something in its place that nobody will be able to use either
            record = KeyRecord(key_id, _UNREADABLE, (), (), now_ms)
        if record.state(now_ms) is KeyState.REVOKED:
            print(f"{key_id} is revoked already")
            return 0
        record_act(pipe, "keys revoke", key_id=key_id, name=record.name)
        put_record(pipe, replace(record, revoked_ms=now_ms), master)
    print(f"{key_id} is revoked; within a second it may do nothing more")
    return 0


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _day(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1e3, UTC).strftime("%Y-%m-%d")


def _keys(settings: Settings, options: argparse.Namespace) -> int:
    return _ACTIONS[options.action](settings, options)


_ACTIONS: dict[str, Callable[[Settings, argparse.Namespace], int]] = {"new": _new, "list": _list, "revoke": _revoke}
KEYRING: dict[str, Callable[[Settings, argparse.Namespace], int]] = {"keys": _keys}
