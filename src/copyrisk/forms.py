"""What a master's order becomes for each class of followers: a group, a flow, a side."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from decimal import Decimal, localcontext

from copyrisk.commands import Command, CommandType
from copyrisk.conditions import LotLimits
from copyrisk.copying import CopySettings
from copyrisk.decimals import EXACT
from copyrisk.errors import CopyriskError
from copyrisk.execution import decide
from copyrisk.identifiers import Account
from copyrisk.market import InstrumentKey
from copyrisk.orders import is_pending_type
from copyrisk.placing import amounts_of
from copyrisk.replication import MasterEvent, reversed_target, reversed_type
from copyrisk.situation import Outcome, Situation, SymbolMarket
from copyrisk.store.changes import Cause
from copyrisk.store.copies import CopyForm, charge_bytes, lots_bytes
from copyrisk.store.effects import Effects
from copyrisk.store.markets import Markets
from copyrisk.terms import AccountType

_ANYBODY = Account(AccountType.FOLLOWER, "-")
_ANY_LOTS = LotLimits(Decimal(10) ** -18, Decimal(10) ** 18, Decimal(10) ** -18)


@dataclass(slots=True)
class Form:
    """A class of followers: the requests of their copies, and what lots come to in it."""

    requests: CopyForm
    market: SymbolMarket
    price: Decimal
    is_buy: bool
    is_filled: bool
    _amounts: dict[tuple[Decimal, int], tuple[bytes, bytes, bytes]] = field(default_factory=dict)

    def amounts(self, lot_step: Decimal, steps: int) -> tuple[bytes, bytes, bytes]:
        """Lots, contract value and commission of a copy of so many steps, as they are written."""
        found = self._amounts.get((lot_step, steps))
        if found is None:
            with localcontext(EXACT):
                lots = lot_step * steps
                value, commission = amounts_of(lots, self.price, self.market)
                said = charge_bytes(commission) if self.is_filled else b""
                found = self._amounts[lot_step, steps] = (lots_bytes(lots), lots_bytes(value), said)
        return found


class Forms:
    """Makes the forms of one event."""

    def __init__(self, event: MasterEvent, markets: Markets, effects: Effects) -> None:
        self._event, self._markets, self._effects = event, markets, effects
        self._of_group: dict[str, SymbolMarket] = {}

    def read(self, groups: Iterable[str], *, anew: bool) -> None:
        """Have the markets of these groups at hand; `anew` as they are now, else as they were last read.

        Raises
        ------
        StoreError, StoreUnavailable
        """
        market = self._markets.market
        rows = {group: market.ensure_instrument(InstrumentKey(group, self._event.symbol)) for group in groups}
        if anew:
            self._markets.read(sorted(set(rows.values())))
        for group, row in rows.items():
            found = self._markets.of(row)
            assert found is not None, "it has been asked for"
            self._of_group[group] = found

    def of(self, group: str, settings: CopySettings, *, reverse: bool) -> Form | str:
        """The form of a class whose market has been read, or why nothing can be opened in it."""
        if settings.refusal:
            return settings.refusal
        market = self._of_group[group]
        try:
            outcome = self._outcome(market, settings, reverse=reverse)
        except CopyriskError as refusal:
            return refusal.code
        cause, standing = Cause(self._event.entry_id, "copy"), (group, settings.copy_status)
        requests = CopyForm(outcome, cause, standing, self._markets.now_ms, self._effects)
        order = outcome.order
        return Form(requests, market, order.price, order.order_type.is_buy, bool(order.opened))

    def _outcome(self, market: SymbolMarket, settings: CopySettings, *, reverse: bool) -> Outcome:
        """What comes of the order in an account of the class, whatever its lots and margin."""
        event = self._event
        order_type = reversed_type(event.order_type) if reverse else event.order_type
        levels = reversed_target(event.target) if reverse else event.target
        is_pending = is_pending_type(order_type)
        command = Command(
            id=event.entry_id,
            type=CommandType.PENDING if is_pending else CommandType.OPEN,
            account=_ANYBODY,
            order_id="-",
            key="",
            client_key="",
            body="",
            symbol=event.symbol,
            order_type=order_type,
            quantity=event.asked,
            price=event.price if is_pending else None,
            stop_loss=levels.stop_loss,
            take_profit=levels.take_profit,
            master_order_id=event.order_id,
        )
        agreed = replace(market.agreed(), lots=_ANY_LOTS)  # the sizes have been held against the limits
        situation = Situation(
            account=_ANYBODY,
            now_ms=self._markets.now_ms,
            balance=Decimal(0),
            sending_orders=settings.sending_orders,
            is_active=True,
            order=None,
            market=replace(market, conditions=agreed),
            order_count=0,
        )
        outcome = decide(command, situation)
        assert isinstance(outcome, Outcome)
        return outcome
