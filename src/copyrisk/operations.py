"""What operators do from the command line: look at what is stuck, and put it right."""

import argparse
from collections.abc import Callable

from copyrisk.auditing import AUDITING, add_audit_commands, record_act
from copyrisk.cascade_commands import CASCADES, add_cascade_command
from copyrisk.errors import ConfigError
from copyrisk.gateway.gateway import resolve
from copyrisk.gateway.ledger import Ledger
from copyrisk.gateway.messages import printable
from copyrisk.gateway.records import Record
from copyrisk.keyring import KEYRING, add_key_commands
from copyrisk.killing import KILLING, add_kill_commands
from copyrisk.notify_sections import send_sample
from copyrisk.relationships import RELATIONSHIPS, add_relationship_commands
from copyrisk.reporting import REPORTING, add_reporting_commands
from copyrisk.roles import client_of, open_database
from copyrisk.settings import Settings
from copyrisk.store import library
from copyrisk.store.letters import list_letters, replay
from copyrisk.store.pipe import Pipe

_SHOWN_CHARS = 4_000


def add_commands(parser: argparse.ArgumentParser) -> None:
    """The commands that `COMMANDS` carries out, and their arguments."""
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    letters = commands.add_parser("dead-letters", help="entries that failed again and again")
    letters.add_argument("action", choices=("list", "replay"))
    letters.add_argument("ids", nargs="*", metavar="ID", help="which to replay; 'all' for all of them")
    requests = commands.add_parser("requests", help="what the provider was asked and has not ended yet")
    requests.add_argument("action", choices=("list", "resolve"))
    requests.add_argument("id", nargs="?", metavar="ID", help="an unknown request, to be ended by hand")
    requests.add_argument("--status", choices=("filled", "rejected", "cancelled"), help="how it ended")
    requests.add_argument("--filled-quantity", default="0", metavar="LOTS")
    requests.add_argument("--average-price", default="0", metavar="PRICE")
    database = commands.add_parser("database", help="the broker's database, as the settings name it")
    database.add_argument("action", choices=("check", "migrate"), help="say what is wrong; or make what is absent")
    warnings = commands.add_parser("notify", help="warnings to clients")
    warnings.add_argument("action", choices=("test",), help="send a sample through the sinks of the settings")
    warnings.add_argument("--to", default="", metavar="ADDRESS", help="whom the sample is mailed to")
    add_relationship_commands(commands)
    add_kill_commands(commands)
    add_reporting_commands(commands)
    add_cascade_command(commands)
    add_audit_commands(commands)
    add_key_commands(commands)


def _required_url(settings: Settings, what: str) -> str:
    if settings.redis.url is None:
        raise ConfigError(f"{what}: say which server with --redis")
    return settings.redis.url


def _requests(settings: Settings, options: argparse.Namespace) -> int:
    client = client_of(settings, _required_url(settings, "requests"))
    if options.action == "resolve":
        if options.id is None or options.status is None:
            raise ConfigError(
                "say which request, and how it ended: requests resolve ID --status filled|rejected|cancelled"
            )
        library.load(client)
        record_act(
            Pipe(client),
            "requests resolve",
            options.status,
            request_id=options.id,
            filled_quantity=options.filled_quantity,
            average_price=options.average_price,
        )
        said = resolve(
            client,
            options.id,
            options.status,
            filled_quantity=options.filled_quantity,
            average_price=options.average_price,
            reason="resolved by hand",
        )
        print(f"{options.id} resolved: {said['status']}, {said['filled_quantity']} lots")
        return 0
    ledger = Ledger(Pipe(client), 0)
    known = ledger.look(ledger.outstanding_ids())
    for request_id, record in sorted(known.items()):
        if isinstance(record, Record):
            asked = record.request
            what = f"{asked.action} {asked.side} {asked.quantity} {asked.symbol} for {asked.account} {asked.order_id}"
            print(f"{request_id}  {record.state}, filled {record.filled}  {what}")
    print(f"{len(known)} requests without an end")
    return 0


def _dead_letters(settings: Settings, options: argparse.Namespace) -> int:
    client = client_of(settings, _required_url(settings, "dead-letters"))
    pipe = Pipe(client)
    letters = list_letters(pipe)
    if options.action == "list":
        for letter in letters:
            print(printable(f"{letter.id}  {letter.stream} {letter.entry_id}  {letter.code}: {letter.reason}"))
            print(
                "    " + printable(" ".join(f"{name}={value}" for name, value in letter.fields.items()), _SHOWN_CHARS)
            )
        print(f"{len(letters)} dead letters")
        return 0
    if not options.ids:
        raise ConfigError("say which to replay: ids, or 'all'")
    chosen = [letter.id for letter in letters] if options.ids == ["all"] else options.ids
    if chosen:
        library.load(client)
        record_act(pipe, "dead-letters replay", letters=chosen)
    for letter_id in chosen:
        letter = replay(pipe, letter_id)
        print(f"{letter_id} put back into {letter.stream}")
    return 0


def _database(settings: Settings, options: argparse.Namespace) -> int:
    opened = open_database(settings)
    if opened is None:
        raise ConfigError("there is no database: set database.url", code="database_missing")
    with opened as database:
        report = database.migrate() if options.action == "migrate" else database.check()
    for problem in report.problems:
        print(f"problem: {problem}")
    for column in report.absent:
        print(f"absent, not needed: {column}")
    state = "ready" if report.is_ready else "not ready"
    print(f"database: {state}, revision {report.revision or 'none'} of {report.head}")
    return 0 if report.is_ready else 1


def _notify(settings: Settings, options: argparse.Namespace) -> int:
    found = send_sample(settings.notify.make_sinks(), options.to)
    for name, failure in found.items():
        print(f"{name}: delivered" if failure is None else f"{name}: not delivered, {failure} [{failure.code}]")
    return 1 if any(found.values()) else 0


COMMANDS: dict[str, Callable[[Settings, argparse.Namespace], int]] = {
    "dead-letters": _dead_letters,
    "requests": _requests,
    "database": _database,
    "notify": _notify,
    **RELATIONSHIPS,
    **KILLING,
    **REPORTING,
    **CASCADES,
    **AUDITING,
    **KEYRING,
}
