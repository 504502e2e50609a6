"""The markets that decisions are made in: terms and quotes, read when they are needed, exact and for the kernels."""

import time
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import redis

from copyrisk import fields, keys
from copyrisk._core import RowCode, judge_quotes
from copyrisk._wire import READ, REFUSED_REPLY
from copyrisk.conditions import Conditions, LotLimits, read_conditions
from copyrisk.decimals import ZERO, parse_decimal
from copyrisk.errors import Refused, TryLater, is_known, reason_name
from copyrisk.hours import MarketHours
from copyrisk.market import InstrumentKey, Market
from copyrisk.rules import ValuationRules
from copyrisk.situation import NO_QUOTE, Quote, SymbolMarket
from copyrisk.store.connection import OF_ONE_KEY, store_error
from copyrisk.store.filler import Filler
from copyrisk.store.functions import text
from copyrisk.store.pipe import Pipe, pack
from copyrisk.store.texts import TextColumns


class Markets:
    """Instruments and quotes by row. Rows stay; what stands in them is as of the last `read` that asked for them.

    Attributes
    ----------
    market : Market
        Its arrays, for the kernels.
    columns : TextColumns
        Over the market's names.
    now_ms : int
        When the quotes were judged.
    """

    def __init__(
        self, pipe: Pipe, filler: Filler, rules: ValuationRules, hours: MarketHours, default_lots: LotLimits
    ) -> None:
        self._pipe, self._filler, self._rules, self._hours = pipe, filler, rules, hours
        self._default_lots = default_lots
        self.market = Market(rules)
        self.columns = TextColumns(self.market.names.index)
        self._exact: dict[int, tuple[Decimal | None, Decimal | None]] = {}
        self._conditions: dict[int, Conditions | Refused] = {}
        self._terms: dict[int, tuple[Any, Any]] = {}
        self.now_ms = 0

    def read(self, instruments: list[int]) -> None:
        """Read the terms and quotes of these instruments, and the quotes that convert their profit.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        wanted = [self.market.instrument_keys[row] for row in instruments]
        asked = list(dict.fromkeys(key for own in wanted for key in (own, _standard(own))))
        quotes = self._quotes_of(instruments)
        replies = self._ask(
            [_terms_request(key) for key in asked] + [_quote_request(self.market.symbols[row]) for row in quotes]
        )
        terms = dict(zip(asked, replies, strict=False))
        for key, reply in terms.items():
            if not reply:
                terms[key] = self._filled(key, reply)
        self._set_terms(instruments, terms)
        self._set_quotes(quotes, replies[len(asked) :])
        more = [row for row in self._quotes_of(instruments) if row not in set(quotes)]
        if more:  # the first time that the profit of an instrument is converted
            self._set_quotes(more, self._ask([_quote_request(self.market.symbols[row]) for row in more]))
        self.now_ms = time.time_ns() // 1_000_000
        judge_quotes(self.market.quotes, self.now_ms, self._hours.open_by_type(self.now_ms))

    def _filled(self, key: InstrumentKey, reply: Any) -> Any:
        """Terms that the database may have: without them the fallback must not be taken for the group's own."""
        try:
            return self._ask([_terms_request(key)])[0] if self._filler.group(key) else reply
        except TryLater as failure:
            return failure

    def _ask(self, requests: list[bytes]) -> list[Any]:
        replies = self._pipe.exchange(requests)
        for reply in replies:
            if isinstance(reply, Exception) and not str(reply).startswith(OF_ONE_KEY):
                raise store_error(redis.ResponseError(str(reply)))
        return replies

    def _quotes_of(self, instruments: list[int]) -> list[int]:
        found = self.market.instruments[instruments]
        rows = np.unique(np.concatenate([found["quote"], found["direct"], found["inverse"]]))
        chosen: list[int] = rows[rows >= 0].tolist()
        return chosen

    def _set_terms(self, instruments: list[int], replies: Mapping[InstrumentKey, Any]) -> None:
        for row in instruments:
            key = self.market.instrument_keys[row]
            own, standard = said = replies[key], replies[_standard(key)]
            if self._terms.get(row) == said:
                continue
            self._terms[row] = said
            reply = own if own or isinstance(own, Exception) else standard
            judged = self._judge_terms(reply)
            of_standard = judged if reply is standard else self._judge_terms(standard)
            self.market.set_type(_standard(key), int(of_standard["type"]))
            self.market.set_instrument(row, judged)
            self._conditions[row] = self._conditions_of(reply, RowCode(int(judged["code"])))

    def _judge_terms(self, reply: Any) -> Any:
        wanted = fields.INSTRUMENT_COLUMNS.fields
        said = {} if isinstance(reply, Exception) else _hash(reply)
        read = self.columns.rows(fields.INSTRUMENT_COLUMNS, [[said.get(name.encode()) for name in wanted]])
        read["reply"] = REFUSED_REPLY if isinstance(reply, Exception) else READ
        return fields.judge_instruments(read, self.market.names)[0]

    def _conditions_of(self, reply: Any, code: RowCode) -> Conditions | Refused:
        if code != RowCode.OK:
            return Refused("the symbol's terms cannot be used", code=reason_name(code))
        said = {text(name): text(value) for name, value in _hash(reply).items()}
        try:
            return read_conditions(said, self._default_lots)
        except Refused as refusal:
            return refusal

    def _set_quotes(self, rows: Sequence[int], replies: Sequence[Any]) -> None:
        blank = [None] * len(fields.QUOTE_COLUMNS.fields)
        hashes = [blank if isinstance(reply, Exception) else reply for reply in replies]
        read = self.columns.rows(fields.QUOTE_COLUMNS, hashes)
        read["reply"][[isinstance(reply, Exception) for reply in replies]] = REFUSED_REPLY
        judged = fields.judge_quotes_read(read)
        for i, row in enumerate(rows):
            self.market.set_quotes(row, judged[i : i + 1])
            self._exact[row] = parse_decimal(text(hashes[i][0])), parse_decimal(text(hashes[i][1]))

    def of(self, row: int) -> SymbolMarket | None:
        """The market of an instrument, `None` for row -1."""
        if row < 0:
            return None
        instrument = self.market.instruments[row]
        return SymbolMarket(
            self.market.instrument_keys[row].symbol,
            self._quote(int(instrument["quote"])),
            self._conditions[row],
            bool(instrument["profit_is_usd"]),
            self._quote(int(instrument["direct"])),
            self._quote(int(instrument["inverse"])),
            self._rules.rate_side,
        )

    def _quote(self, row: int) -> Quote:
        if row < 0:
            return NO_QUOTE
        bid, ask = self._exact.get(row, (None, None))
        code = RowCode(int(self.market.quotes[row]["code"]))
        if bid is None or ask is None:
            return Quote(ZERO, ZERO, RowCode.QUOTE_UNREADABLE if is_known(code) else code)
        return Quote(bid, ask, code)


def _standard(key: InstrumentKey) -> InstrumentKey:
    return InstrumentKey(keys.STANDARD_GROUP, key.symbol)


def _terms_request(key: InstrumentKey) -> bytes:
    return pack("HGETALL", keys.group(key.group, key.symbol))


def _quote_request(symbol: str) -> bytes:
    return pack("HMGET", keys.market(symbol), *fields.QUOTE_COLUMNS.fields)


def _hash(reply: Any) -> dict[bytes, bytes]:
    """A hash that came flat, or (with the newer protocol) as a map."""
    if isinstance(reply, dict):
        return reply
    return {reply[i]: reply[i + 1] for i in range(0, len(reply), 2)}
