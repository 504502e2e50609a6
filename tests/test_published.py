"""Figures that others have published, to the last published digit, through decoders, book and kernels."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from copyrisk._core import LadderState, RowCode
from copyrisk.fields import exact_text, usd_text
from copyrisk.pricing import Spread, closing_price, execution_price, net_profit_usd, profit
from tests.books import value_one

DATA = Path(__file__).parent / "data"
PUBLISHED: dict[str, Any] = json.loads((DATA / "published.json").read_text())
PORTFOLIOS: dict[str, Any] = json.loads((DATA / "portfolio.json").read_text())
ORDER_COLUMNS = ("symbol", "order_type", "order_quantity", "order_price")


def figures_of(part: dict[str, Any], rules: dict[str, Any]) -> Any:
    orders = [dict(zip(ORDER_COLUMNS, order, strict=True)) for order in part["orders"]]
    return value_one(part["account"], part["instruments"], orders, rules)


def half_a_unit(text: str) -> Decimal:
    return Decimal(1).scaleb(int(Decimal(text).as_tuple().exponent)) / 2


@pytest.mark.parametrize("case", PUBLISHED["cases"], ids=lambda case: case["id"])
def test_a_published_figure_is_met(case: dict[str, Any]) -> None:
    parts = [figures_of(part, case.get("rules", {})) for part in case.get("slices", [case])]
    for name, expected in case["expected"].items():
        if name == "state":
            assert LadderState(parts[0]["state"]).name == expected
        elif name == "code":
            assert RowCode(parts[0]["code"]).name == expected
            assert parts[0]["state"] == LadderState.STATE_UNKNOWN
        else:
            # Half the margin over the equity, as a percentage, is 50 x 100 / level.
            values = [5000.0 / p["margin_level_pct"] if name == "closeout_pct" else p[name] for p in parts]
            tolerance = Decimal(expected[1]) if len(expected) > 1 else half_a_unit(expected[0])
            error = abs(Decimal(float(sum(values))) - Decimal(expected[0]))
            assert error <= tolerance + Decimal("1e-9"), f"{name}: {sum(values)} is not {expected[0]}"


def test_every_row_of_the_list_is_here_or_has_a_reason() -> None:
    covered = {entry["id"][:4] for part in ("cases", "closes", "not_applicable") for entry in PUBLISHED[part]}
    margin = "M-01 M-05 M-09 M-10 M-12 M-14 M-15 M-16 M-17 M-20 M-21 M-22 M-23 M-24 M-25 M-26 M-27 M-29 M-32"
    others = "H-01 H-02 H-03 H-04 H-05 H-08 H-09 E-01 P-02 P-04 P-05 P-06 P-07 P-09 P-10 P-11 P-12 P-13 P-14"
    assert covered == set(f"{margin} {others}".split())
    assert all(entry["reason"] for entry in PUBLISHED["not_applicable"])


@pytest.mark.parametrize("case", PUBLISHED["closes"], ids=lambda case: case["id"])
def test_a_close_pays_for_what_was_open(case: dict[str, Any]) -> None:
    lots = min(Decimal(case["position"]), Decimal(case["closed"]))
    prices = {"open_price": Decimal(case["open"]), "close_price": Decimal(case["close"])}
    size = Decimal(case["contract_size"])
    assert profit(is_buy=case["is_buy"], lots=lots, contract_size=size, **prices) == Decimal(case["profit"])


def decimal(value: Any) -> Decimal:
    return Decimal(repr(value)) if isinstance(value, float) else Decimal(value)


@pytest.mark.parametrize("case", PORTFOLIOS["cases"], ids=lambda case: case["name"].split()[0])
def test_portfolios_of_an_existing_back_office(case: dict[str, Any]) -> None:
    quotes = {symbol: {"bid": bid, "ask": ask} for symbol, (bid, ask) in PORTFOLIOS["quotes"].items()}
    market = [{"symbol": symbol, **terms, **quotes[symbol]} for symbol, terms in PORTFOLIOS["groups"].items()]
    figures = value_one(case["config"], market, case["orders"])
    written = {
        "equity": usd_text(figures["equity"]),
        "free_margin": usd_text(figures["free_margin"]),
        "used_margin": usd_text(figures["used_margin_executed"]),
        "margin_level": usd_text(figures["margin_level_pct"]),
        "open_pnl": usd_text(figures["open_pnl"]),
        "used_margin_executed": exact_text(figures["used_margin_executed"]),
        "used_margin_all": exact_text(figures["used_margin_all"]),
    }
    assert written == {name: case["portfolio"][name] for name in written}


def quote_and_spread(symbol: str) -> dict[str, Any]:
    bid, ask = (decimal(side) for side in PORTFOLIOS["quotes"][symbol])
    terms = PORTFOLIOS["groups"][symbol]
    return {"bid": bid, "ask": ask, "spread": Spread(decimal(terms["spread"]), decimal(terms["spread_pip"]))}


@pytest.mark.parametrize("name", [name for name in PORTFOLIOS["prices"] if name != "note"])
def test_execution_prices_of_an_existing_back_office(name: str) -> None:
    symbol, side = name.split()
    found = execution_price(is_buy=side == "BUY", **quote_and_spread(symbol))
    assert found == decimal(PORTFOLIOS["prices"][name])


@pytest.mark.parametrize("trip", PORTFOLIOS["round_trips"], ids=lambda trip: trip["symbol"])
def test_round_trips_of_an_existing_back_office(trip: dict[str, Any]) -> None:
    is_buy, lots = trip["side"] == "BUY", decimal(trip["lots"])
    quote = quote_and_spread(trip["symbol"])
    opened, closed = execution_price(is_buy=is_buy, **quote), closing_price(is_buy=is_buy, **quote)
    assert (opened, closed) == (decimal(trip["open"]), decimal(trip["close"]))
    size = decimal(PORTFOLIOS["groups"][trip["symbol"]]["contract_size"])
    gross = profit(is_buy=is_buy, lots=lots, contract_size=size, open_price=opened, close_price=closed)
    assert gross == decimal(trip["profit_usd"])
    commission = decimal(trip["commission_rate_per_lot_per_side"]) * lots
    booked = net_profit_usd(profit_usd=gross, commission_entry=commission, commission_exit=commission, swap=Decimal(0))
    assert booked == decimal(trip["net_profit"])
