"""The demo's world: symbols with their terms, and the two groups of its broker."""

from dataclasses import dataclass

STANDARD, VIP = "Standard", "VIP"


@dataclass(frozen=True, slots=True)
class Symbol:
    """One row of the table; `volatility_pct` is per year."""

    name: str
    price: float
    digits: int
    spread_points: int
    contract_size: float
    profit: str
    type: int
    volatility_pct: float

    @property
    def point(self) -> float:
        """The smallest step of the price."""
        return 10.0**-self.digits


SYMBOLS = (
    Symbol("EURUSD", 1.0845, 5, 6, 100_000, "USD", 1, 8),
    Symbol("GBPUSD", 1.2754, 5, 8, 100_000, "USD", 1, 9),
    Symbol("AUDUSD", 0.6612, 5, 8, 100_000, "USD", 1, 11),
    Symbol("NZDUSD", 0.6098, 5, 10, 100_000, "USD", 1, 11),
    Symbol("USDJPY", 157.25, 3, 9, 100_000, "JPY", 1, 10),
    Symbol("USDCHF", 0.9013, 5, 9, 100_000, "CHF", 1, 8),
    Symbol("USDCAD", 1.3671, 5, 9, 100_000, "CAD", 1, 7),
    Symbol("USDNOK", 10.61, 4, 40, 100_000, "NOK", 1, 12),
    Symbol("USDSEK", 10.48, 4, 40, 100_000, "SEK", 1, 12),
    Symbol("EURGBP", 0.85, 5, 8, 100_000, "GBP", 1, 6),
    Symbol("EURJPY", 170.54, 3, 12, 100_000, "JPY", 1, 10),
    Symbol("EURCHF", 0.9775, 5, 10, 100_000, "CHF", 1, 6),
    Symbol("GBPJPY", 200.56, 3, 15, 100_000, "JPY", 1, 11),
    Symbol("AUDNZD", 1.0843, 5, 14, 100_000, "NZD", 1, 7),
    Symbol("CADCHF", 0.6593, 5, 14, 100_000, "CHF", 1, 8),
    Symbol("EURNOK", 11.51, 4, 50, 100_000, "NOK", 1, 9),
    Symbol("XAUUSD", 2410.1, 2, 25, 100, "USD", 2, 16),
    Symbol("XAGUSD", 30.85, 3, 20, 5_000, "USD", 2, 28),
    Symbol("US500", 5432.5, 1, 5, 10, "USD", 3, 15),
    Symbol("NAS100", 19_650.0, 1, 12, 10, "USD", 3, 20),
    Symbol("GER40", 18_210.0, 1, 12, 10, "EUR", 3, 16),
    Symbol("UK100", 8_205.0, 1, 12, 10, "GBP", 3, 13),
    Symbol("BTCUSD", 65_010.0, 2, 2_000, 1, "USD", 4, 55),
    Symbol("ETHUSD", 3_505.0, 2, 150, 10, "USD", 4, 65),
)
BY_NAME = {symbol.name: symbol for symbol in SYMBOLS}


def group_terms(symbol: Symbol, group: str) -> dict[str, str]:
    """The hash of a group's terms for a symbol; VIP pays half the spread and commission."""
    share = 0.5 if group == VIP else 1.0
    return {
        "contract_size": f"{symbol.contract_size:g}" if symbol.contract_size < 1e5 else str(int(symbol.contract_size)),
        "profit": symbol.profit,
        "type": str(symbol.type),
        "spread": str(round(10 * share)),
        "spread_pip": f"{symbol.point:.{symbol.digits}f}",
        "commission_rate": f"{3.5 * share:g}",
        "commission_type": "both",
        "commission_value_type": "per_lot",
        "crypto_margin_factor": "2" if symbol.type == 4 else "1",
        "min_lot": "0.01",
        "max_lot": "100",
        "lot_step": "0.01",
    }
