"""Accounts for the demo: all four types, with orders, relationships and a few that are in trouble."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from copyrisk import keys
from copyrisk.demo.feed import Quote, quote_commands
from copyrisk.demo.market import BY_NAME, STANDARD, VIP, Symbol, group_terms
from copyrisk.errors import ConfigError
from copyrisk.identifiers import Account
from copyrisk.store.pipe import Pipe, pack
from copyrisk.terms import AccountType

_BATCH_ACCOUNTS = 200
_TYPES = (AccountType.LIVE, AccountType.DEMO, AccountType.MASTER, AccountType.FOLLOWER)
_SHARES = (0.45, 0.3, 0.03, 0.22)
#: Margin levels that accounts are given at the start: most are well off, a few near their thresholds.
_LEVELS_PCT = ((120.0, 2_000.0, 0.955), (50.0, 75.0, 0.025), (9.0, 20.0, 0.02))
_LEVERAGES = (30, 100, 200, 500)


@dataclass(frozen=True, slots=True)
class SeedReport:
    """How many of what were written."""

    accounts: int
    orders: int


@dataclass(frozen=True, slots=True)
class _Price:
    symbol: Symbol
    bid: float
    ask: float
    to_usd: float


def seed(
    pipe: Pipe,
    accounts: int,
    quotes: Sequence[Quote],
    *,
    number: int = 1,
    progress: Callable[[int], None] = lambda _: None,
) -> SeedReport:
    """Fill an empty database.

    Parameters
    ----------
    pipe : Pipe
    accounts : int
    quotes : sequence
        A first quote of every symbol that may be traded.
    number : int
        Seed of the random numbers; the same one writes the same accounts.
    progress : callable
        Told how many accounts are done after each batch.

    Raises
    ------
    ConfigError
        `demo_refused`: the database holds something, and may be a broker's.
    """
    _refuse_unless_empty(pipe)
    prices = _seed_market(pipe, quotes)
    random = np.random.default_rng(number)
    types = [_TYPES[index] for index in random.choice(len(_TYPES), accounts, p=_SHARES)]
    masters = [f"{index + 1}" for index, kind in enumerate(types) if kind is AccountType.MASTER]
    orders = 0
    for start in range(0, accounts, _BATCH_ACCOUNTS):
        commands: list[bytes] = []
        for index in range(start, min(start + _BATCH_ACCOUNTS, accounts)):
            account = Account(types[index], f"{index + 1}")
            orders += _add_account(commands, account, prices, random)
            if account.type is AccountType.FOLLOWER and masters:
                master = masters[int(random.integers(len(masters)))]
                commands.append(pack("SADD", keys.active_followers(master), account.id))
                commands.append(pack("SET", keys.provider_of(account.id), master))
        _checked(pipe, commands)
        progress(min(_BATCH_ACCOUNTS, accounts - start))
    return SeedReport(accounts, orders)


def _refuse_unless_empty(pipe: Pipe) -> None:
    (size,) = pipe.exchange([pack("DBSIZE")])
    if size != 0:
        raise ConfigError(
            f"the demo writes into an empty database only, and this one holds {size} keys", code="demo_refused"
        )


def _seed_market(pipe: Pipe, quotes: Sequence[Quote]) -> list[_Price]:
    _checked(pipe, quote_commands(quotes))
    prices = _prices(quotes)
    terms = [
        pack("HSET", keys.group(group, price.symbol.name), *_flat(group_terms(price.symbol, group)))
        for price in prices
        for group in (STANDARD, VIP)
    ]
    _checked(pipe, terms)
    return prices


def _checked(pipe: Pipe, commands: list[bytes]) -> None:
    for reply in pipe.exchange(commands):
        if isinstance(reply, Exception):
            raise ConfigError(f"the server refused the demo's accounts: {reply}", code="demo_refused")


def _flat(mapping: dict[str, str]) -> list[str]:
    return [word for item in mapping.items() for word in item]


def _prices(quotes: Sequence[Quote]) -> list[_Price]:
    ask_of = {symbol: float(ask) for symbol, _, ask in quotes}

    def to_usd(currency: str) -> float | None:
        if currency == "USD":
            return 1.0
        if currency + "USD" in ask_of:
            return ask_of[currency + "USD"]
        return 1.0 / ask_of["USD" + currency] if "USD" + currency in ask_of else None

    found = []
    for name, bid, ask in quotes:
        rate = to_usd(BY_NAME[name].profit)
        if rate is not None:
            found.append(_Price(BY_NAME[name], float(bid), float(ask), rate))
    return found


def _add_account(commands: list[bytes], account: Account, prices: list[_Price], random: np.random.Generator) -> int:
    """Append an account with its orders; its balance is chosen so that it starts at a level drawn for it."""
    leverage = _LEVERAGES[int(random.integers(len(_LEVERAGES)))]
    favourites = [prices[int(index)] for index in random.integers(len(prices), size=3)]
    pnl = margin = 0.0
    count = int(random.poisson(5))
    for position in range(count):
        price = favourites[int(random.integers(3))]
        is_buy = bool(random.random() < 0.5)
        notional_usd = float(random.choice([1_000, 5_000, 20_000, 100_000]))
        per_lot_usd = price.symbol.contract_size * price.ask * price.to_usd
        lots = max(0.01, round(notional_usd / per_lot_usd, 2))
        away = float(random.normal(0.0, 0.002))
        open_price = round((price.ask if is_buy else price.bid) * (1.0 + away), price.symbol.digits)
        moved = price.bid - open_price if is_buy else open_price - price.ask
        queued = bool(random.random() < 0.02)
        order_margin = lots * per_lot_usd * (2.0 if price.symbol.type == 4 else 1.0) / leverage
        if not queued:
            pnl += moved * lots * price.symbol.contract_size * price.to_usd - 7.0 * lots
            margin += order_margin
        order_id = f"{account.id}0{position:03d}"
        _add_order(commands, account, order_id, price.symbol, (is_buy, lots, open_price, order_margin, queued))
    low, high, _ = _LEVELS_PCT[int(random.choice(3, p=[share for _, _, share in _LEVELS_PCT]))]
    level = float(random.uniform(low, high))
    balance = margin * level / 100.0 - pnl if margin > 0.0 else float(random.integers(100, 20_000))
    config = {
        "wallet_balance": f"{balance:.2f}",
        "leverage": str(leverage),
        "group": VIP if random.random() < 0.1 else STANDARD,
        "status": "1",
        "is_active": "1",
        "sending_orders": "rock" if random.random() < 0.7 else "barclays",
        "account_number": f"{account.type.value[0].upper()}{int(account.id):07d}",
        "email": f"client{account.id}@example.com",
        "auto_cutoff_level": "50",
        "auto_liquidation_level": "10",
    }
    if account.type is AccountType.FOLLOWER:
        config |= {"copy_status": "active", "multiplier": "1", "max_lot_size": "50", "below_min": "skip"}
    commands.append(pack("HSET", keys.config(account), *_flat(config)))
    return count


def _add_order(
    commands: list[bytes],
    account: Account,
    order_id: str,
    symbol: Symbol,
    order: tuple[bool, float, float, float, bool],
) -> None:
    is_buy, lots, price, margin, queued = order
    fields = {
        "order_id": order_id,
        "symbol": symbol.name,
        "order_type": "BUY" if is_buy else "SELL",
        "order_status": "QUEUED" if queued else "OPEN",
        "execution_status": "QUEUED" if queued else "EXECUTED",
        "order_price": f"{price:.{symbol.digits}f}",
        "order_quantity": f"{lots:.2f}",
        "margin": f"{margin:.2f}",
        "contract_value": f"{lots * symbol.contract_size:.2f}",
        "commission": f"{7.0 * lots:.2f}",
        "swap": "0",
        "execution": "provider" if queued else "local",
        "user_type": account.type.value,
        "user_id": account.id,
        "created_at": "2026-01-05T09:00:00Z",
    }
    commands.append(pack("HSET", keys.holding(account, order_id), *_flat(fields)))
    commands.append(pack("SADD", keys.orders_index(account), order_id))
    commands.append(pack("SADD", keys.symbol_holders(symbol.name, account.type), str(account)))
    commands.append(pack("HSET", keys.order_data(order_id), *_flat(fields)))
