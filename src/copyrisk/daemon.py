"""The daemon, put together from settings: the tick loop, and what it does about accounts whose margin runs out."""

from dataclasses import replace
from pathlib import Path

import redis

from copyrisk._cutoff import StopOut
from copyrisk.audit_files import TrailFile
from copyrisk.autocutoff import ROLE, Autocutoff
from copyrisk.book import Book
from copyrisk.cascading import Cascader
from copyrisk.dispatch import Dispatcher
from copyrisk.engine import Engine
from copyrisk.halting import Halts
from copyrisk.liquidation import Liquidator
from copyrisk.protecting import Protector
from copyrisk.risk import Valuer
from copyrisk.settings import Settings
from copyrisk.store import library
from copyrisk.store.appraisal import Appraiser
from copyrisk.store.effects import Effects
from copyrisk.store.episodes import Episodes
from copyrisk.store.filler import Filler
from copyrisk.store.lease import Lease
from copyrisk.store.lot_limits import read_lot_limits
from copyrisk.store.markets import Markets
from copyrisk.store.pipe import Pipe
from copyrisk.store.streams import consumer_name
from copyrisk.store.trail import Trail, writer_name
from copyrisk.terms import StopOutMode

_MODES = {
    StopOutMode.LARGEST_LOSS: StopOut.LARGEST_LOSS,
    StopOutMode.LARGEST_MARGIN: StopOut.LARGEST_MARGIN,
    StopOutMode.SMALLEST_PARTIAL: StopOut.SMALLEST_PARTIAL,
    StopOutMode.FLATTEN: StopOut.FLATTEN,
}


def make_engine(
    client: redis.Redis, settings: Settings, *, acts: bool | None = None, always_open: bool = False
) -> Engine:
    """The daemon's loop.

    Parameters
    ----------
    acts : bool
        Whether it warns and closes; `None`: as the settings say.
    always_open : bool
        Whether markets never close, whatever the settings say.
    """
    if always_open:
        settings = replace(settings, market=replace(settings.market, always_open=True))
    book = Book(settings.rules())
    does = settings.cutoff.acts if acts is None else acts
    valuer = Valuer(book)
    autocutoff = make_autocutoff(client, settings, book, valuer) if does else None
    return Engine(client, book, settings.hours(), settings.tick.period_ms, valuer=valuer, autocutoff=autocutoff)


def make_autocutoff(client: redis.Redis, settings: Settings, book: Book, valuer: Valuer) -> Autocutoff:
    """What a daemon does about accounts whose margin runs out; nothing is asked of the server yet."""
    pipe, rules, chosen = Pipe(client), settings.rules(), settings.cutoff
    effects = Effects(pipe, events_limit=settings.orders.events_limit, keeps_history=settings.database.url is not None)
    filler = Filler(pipe, None)  # an account that is to be closed is there
    markets = Markets(pipe, filler, rules, settings.hours(), settings.lots())
    dispatcher = Dispatcher(pipe, Appraiser(markets, rules), effects, filler)
    lease = Lease(pipe, ROLE, consumer_name(), chosen.lease_ms)
    trail = _trail(settings, pipe)
    mode = StopOutMode(chosen.stop_out)
    liquidator = Liquidator(
        dispatcher,
        lease,
        book,
        mode=_MODES[mode],
        lots_of=lambda: read_lot_limits(markets, book.market.instrument_keys),
    )
    cascader = Cascader(pipe, dispatcher, book, lease, figures=lambda: valuer.figures, record=trail.append)

    def prepare() -> None:
        """A connection without a past, to a server that has the functions."""
        pipe.close()
        library.load(client)

    protector = Protector(pipe, book, lease, effects, record=trail.append)
    return Autocutoff(
        lease,
        book,
        valuer,
        episodes=Episodes(pipe),
        liquidator=liquidator,
        cascader=cascader,
        halts=Halts(pipe, book, liquidator, cascader, trail=trail),
        protector=protector if chosen.negative_balance_protection else None,
        trail=trail,
        latches=mode is StopOutMode.FLATTEN,
        options=settings.cutoff_options(),
        prepare=prepare,
    )


def _trail(settings: Settings, pipe: Pipe) -> Trail:
    """The house's trail, with the file of it that this process keeps.

    Raises
    ------
    ConfigError
        `audit_folder_unusable`, `audit_folder_owned`.
    """
    chosen = settings.audit
    file = TrailFile(Path(chosen.folder), chosen.segment_bytes) if chosen.folder else None
    return Trail(pipe, file=file, writer=writer_name(), stream_limit=chosen.stream_limit)
