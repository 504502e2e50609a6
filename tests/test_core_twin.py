"""The kernels against the slow twin, on random books with whatever can be wrong in them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import event, given, settings
from hypothesis import strategies as st

from copyrisk import fields, identifiers
from copyrisk._core import LadderState, RowCode
from copyrisk.errors import is_known
from copyrisk.market import InstrumentKey
from copyrisk.risk import Valuer
from tests import twin
from tests.books import NOW_MS, PlainBook, read, rules_of
from tests.twin import UNREADABLE, Market

GROUPS = ("Standard", "VIP 1")
PROFITS = {"EURUSD": "USD", "EURGBP": "GBP", "USDJPY": "JPY", "BTCUSD": "USD", "ETHJPY": "JPY", "EURNOK": "NOK"}
CRYPTO = ("BTCUSD", "ETHJPY")
QUOTED = (*PROFITS, "GBPUSD", "USDGBP", "JPYUSD", "USDNOK")
NOT_POSITIVE = ("", "0", "-1", "nan", "inf", "1e3", "1_0", "5.", "٣", " 1", None)

prices = st.integers(1, 2_000_000).map(lambda n: f"{n / 10_000:.4f}")
# Few different lots, so that the two sides of a hedge are often equal.
lots = st.one_of(
    st.sampled_from(["0.10", "0.20", "0.30", "0.70", "0.80"]), st.integers(1, 5000).map(lambda n: f"{n / 100:.2f}")
)
times = st.sampled_from([NOW_MS, NOW_MS - 30_000, NOW_MS + 30_000]).map(str)


@st.composite
def quotes(draw: st.DrawFn) -> dict[str, Any]:
    low, high = sorted((draw(prices), draw(prices)), key=Fraction)
    return {"bid": low, "ask": high, "ts": draw(times)}


def terms_of(symbol: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "contract_size": st.sampled_from(["1", "100", "100000"]),
            "profit": st.just(PROFITS[symbol]),
            "type": st.just("4") if symbol in CRYPTO else st.sampled_from(["1", "2", "3"]),
            "crypto_margin_factor": st.sampled_from(["1", "2", "2.5"]),
        }
    )


STATES: list[tuple[str, str | None]] = [("OPEN", "EXECUTED")] * 4
STATES += [("QUEUED", "QUEUED"), ("OPEN", "PENDING"), ("MODIFY", None), ("PENDING", None)]


def in_states(status: str | None, execution: str | None) -> dict[str, Any]:
    return {"order_status": status, "execution_status": execution}


orders = st.fixed_dictionaries(
    {
        "symbol": st.sampled_from(tuple(PROFITS)),
        "order_type": st.sampled_from(["BUY", "SELL"]),
        "order_price": prices,
        "order_quantity": lots,
        "swap": st.sampled_from(["0", "-1.25", "3", None]),
        "commission": st.sampled_from(["0", "7", None]),
    }
).flatmap(lambda order: st.sampled_from(STATES).map(lambda states: {**order, **in_states(*states)}))
configs = st.fixed_dictionaries(
    {
        "wallet_balance": st.integers(-100_000, 10**7).map(lambda cents: f"{cents / 100:.2f}"),
        "leverage": st.sampled_from(["1", "30", "100", "500"]),
        "group": st.sampled_from([*GROUPS, None]),
        "auto_cutoff_level": st.sampled_from(["50", "80.5", "5", None, "x"]),
        "auto_liquidation_level": st.sampled_from(["10", "50", None, "-1"]),
    }
)
accounts = st.tuples(configs, st.lists(orders, max_size=6))

# ---- what can be wrong: hashes that are missing or no hashes, and fields that do not hold what they should

GONE = (None, UNREADABLE)
BAD_QUOTES = (
    *GONE,
    *({side: text} for side in ("bid", "ask") for text in NOT_POSITIVE),
    {"bid": None, "ask": None},
    {"bid": "200.0001"},
    *({"ts": text} for text in (None, "", "x", "-5", "0", str(NOW_MS - 30_001), str(NOW_MS + 30_001))),
)
BAD_TERMS = (
    *GONE,
    *({name: text} for name in ("contract_size", "crypto_margin_factor") for text in NOT_POSITIVE),
    {"profit": "usd"},
    {"profit": "CAD"},
    {"profit": None},
    {"type": "5"},
    {"type": None},
)
BAD_ORDERS = (
    *GONE,
    *({name: text} for name in ("order_price", "order_quantity") for text in NOT_POSITIVE),
    {"symbol": "EUR{"},
    {"symbol": None},
    {"symbol": "XAUUSD"},
    {"order_type": "HOLD"},
    {"swap": "nan"},
    {"commission": "7 USD"},
    {"order_status": "open"},
    {"order_status": "OPEN", "execution_status": "REJECTED"},
    {"order_status": None, "execution_status": None},
    {"order_status": "QUEUED", "order_price": "0"},
)
BAD_CONFIGS = (
    *GONE,
    *({name: text} for name in ("wallet_balance", "leverage") for text in NOT_POSITIVE),
    {"group": "a}b"},
    {"group": "Nobody"},
    {"wallet_balance": "99999999999999"},
)


def broken(row: Any, fault: Any) -> Any:
    if isinstance(fault, dict):
        return {**row, **fault} if isinstance(row, dict) else row
    return fault


@st.composite
def books(draw: st.DrawFn, max_accounts: int = 5) -> tuple[list[Any], Market]:
    """Some accounts and a market, sound but for a few faults."""
    held = draw(st.lists(accounts, min_size=1, max_size=max_accounts))
    terms: dict[tuple[str, str], Any] = {
        (group, symbol): draw(terms_of(symbol)) for group in GROUPS for symbol in PROFITS
    }
    quoted: dict[str, Any] = {symbol: draw(quotes()) for symbol in QUOTED}
    for _ in range(draw(st.integers(0, 4))):
        number = draw(st.integers(0, len(held) - 1))
        config, account_orders = held[number]
        match draw(st.sampled_from(["terms", "quote", "quote", "order", "config"])):
            case "terms":
                key = draw(st.sampled_from(sorted(terms)))
                terms[key] = broken(terms[key], draw(st.sampled_from(BAD_TERMS)))
            case "quote":
                symbol = draw(st.sampled_from(QUOTED))
                quoted[symbol] = broken(quoted[symbol], draw(st.sampled_from(BAD_QUOTES)))
            case "order" if account_orders:
                place = draw(st.integers(0, len(account_orders) - 1))
                account_orders[place] = broken(account_orders[place], draw(st.sampled_from(BAD_ORDERS)))
            case _:
                held[number] = (broken(config, draw(st.sampled_from(BAD_CONFIGS))), account_orders)
    market = Market(
        terms,
        quoted,
        NOW_MS,
        five_day_open=draw(st.sampled_from([True, True, True, False])),
        rate_side=draw(st.sampled_from(["ask", "side", "mid"])),
        margin_price=draw(st.sampled_from(["current", "open"])),
        hedging=draw(st.one_of(st.sampled_from(["max", "sum", "net"]), st.integers(0, 100))),
        max_age_ms=draw(st.sampled_from([30_000, 30_000, 0])),
    )
    return held, market


def answer(raw: Any) -> Any:
    """What a server answers for a hash: its values, nothing, or an error."""
    return Exception("WRONGTYPE") if raw == UNREADABLE else raw or {}


def build(named: Sequence[tuple[str, Any]], market: Market) -> PlainBook:
    chosen = {name: getattr(market, name) for name in ("rate_side", "margin_price", "hedging")}
    book = PlainBook(rules_of({**chosen, "quote_max_age_ms": market.max_age_ms}))
    names = book.names
    for (group, symbol), terms in market.terms.items():
        row = book.market.ensure_instrument(InstrumentKey(group, symbol))
        judged = fields.judge_instruments(read(fields.INSTRUMENT_COLUMNS, names, [answer(terms)]), names)
        book.market.set_instrument(row, judged[0])
    for symbol, row in book.market.quote_row.items():
        quotes = read(fields.QUOTE_COLUMNS, names, [answer(market.quotes.get(symbol))])
        book.market.set_quotes(row, fields.judge_quotes_read(quotes))
    for name, (config, held) in named:
        row = book.ensure_account(identifiers.parse_account(name))
        configs = fields.judge_accounts(read(fields.ACCOUNT_COLUMNS, names, [answer(config)]), names)
        book.set_accounts(np.array([row], np.int32), configs)
        _, new = book.hold(row, [f"O{number}" for number in range(len(held))])
        orders = read(fields.ORDER_COLUMNS, names, [answer(order) for order in held])
        book.set_orders(new, fields.judge_orders(orders, names))
    return book


def figures_of(named: Sequence[tuple[str, Any]], market: Market) -> dict[str, Any]:
    book = build(named, market)
    is_open = np.array([market.five_day_open] * 4 + [True], np.uint8)
    valuer = Valuer(book)
    valuer.value(market.now_ms, is_open)
    return {account: valuer.figures[row] for account, row in book.accounts_held().items()}


def numbered(held: Sequence[Any]) -> list[tuple[str, Any]]:
    return [(f"live:{number}", account) for number, account in enumerate(held)]


def assert_close(found: Any, exact: Fraction, gross: Fraction) -> None:
    assert abs(Fraction(float(found)) - exact) <= Fraction(1, 10**13) * (gross + 10**5), (found, float(exact))


def assert_equal(found: Any, expected: twin.Expected, config: Any) -> None:
    """One account's figures against the twin's."""
    code = RowCode(found["code"])
    event("unknown" if expected.reasons else "closed" if expected.closed else "known")
    if expected.reasons:
        assert code.name in expected.reasons
        assert found["state"] == LadderState.STATE_UNKNOWN
        return
    assert code == (RowCode.MARKET_CLOSED if expected.closed else RowCode.OK)
    equity = Fraction(config["wallet_balance"]) + expected.pnl
    assert_close(found["open_pnl"], expected.pnl, expected.gross)
    assert_close(found["equity"], equity, expected.gross)
    assert_close(found["used_margin_executed"], expected.used, expected.gross)
    assert_close(found["free_margin"], equity - expected.used, expected.gross)
    if expected.used_all is None:
        event("reserve unknown")
        assert np.isnan(found["used_margin_all"])
    else:
        assert_close(found["used_margin_all"], expected.used_all, expected.gross)
    if expected.used == 0:
        assert found["margin_level_pct"] == 0.0
    else:
        level = 100 * equity / expected.used
        noise = Fraction(1, 10**11) * (expected.gross + 10**5) * (1 + abs(level)) / expected.used
        assert abs(Fraction(float(found["margin_level_pct"])) - level) <= noise
        if min(abs(level - expected.warning_pct), abs(level - expected.critical_pct)) < Fraction(1, 10**6):
            return  # doubles may not tell on which side it is; thresholds have tests of their own
    assert LadderState(found["state"]).name == twin.rung(expected, equity)


@settings(max_examples=200, deadline=None)
@given(books())
def test_the_kernels_agree_with_the_twin(book: Any) -> None:
    held, market = book
    figures = figures_of(numbered(held), market)
    for name, (config, account_orders) in numbered(held):
        assert_equal(figures[name], twin.value(config, account_orders, market), config)


BAD_ACCOUNTS = [
    (None, []),
    (UNREADABLE, []),
    ({"wallet_balance": "nan", "leverage": "100"}, []),
    ({"wallet_balance": "1", "leverage": "0"}, [None, UNREADABLE, {"order_status": "?"}]),
]


@settings(max_examples=60, deadline=None)
@given(books(), st.sampled_from(BAD_ACCOUNTS), st.integers(0, 5))
def test_a_bad_account_changes_no_byte_of_another(book: Any, bad: Any, place: int) -> None:
    held, market = book
    without = figures_of(numbered(held), market)
    named = numbered(held)
    named.insert(place, ("demo:bad", bad))
    with_it = figures_of(named, market)
    assert not is_known(with_it.pop("demo:bad")["code"])
    assert_same_bytes(without, with_it)


@settings(max_examples=60, deadline=None)
@given(books(), st.sampled_from(QUOTED), st.sampled_from(BAD_QUOTES))
def test_a_quote_changes_no_byte_of_who_does_not_rest_on_it(book: Any, symbol: str, fault: Any) -> None:
    """An account rests on the quotes of its symbols and of the pairs that convert them."""
    held, market = book
    others = [
        (name, account)
        for name, account in numbered(held)
        if not any(symbol in rests_on(order["symbol"]) for order in account[1] if isinstance(order, dict))
    ]
    changed = replace(market, quotes={**market.quotes, symbol: broken(market.quotes[symbol], fault)})
    assert_same_bytes(figures_of(others, market), figures_of(others, changed))


def rests_on(symbol: str | None) -> set[str | None]:
    currency = PROFITS.get(symbol or "", "USD")
    return {symbol, f"{currency}USD", f"USD{currency}"}


@settings(max_examples=60, deadline=None)
@given(books(), st.randoms(use_true_random=False))
def test_the_order_of_accounts_does_not_matter(book: Any, random: Any) -> None:
    named = numbered(book[0])
    before = figures_of(named, book[1])
    random.shuffle(named)
    assert_same_bytes(before, figures_of(named, book[1]))


@settings(max_examples=60, deadline=None)
@given(books(max_accounts=1), st.randoms(use_true_random=False))
def test_the_order_of_orders_does_not_matter(book: Any, random: Any) -> None:
    """Sums differ in their last bits then, but not in what is known; of several reasons another may come first."""
    [(config, held)], market = book
    expected = twin.value(config, held, market)
    random.shuffle(held)
    assert_equal(figures_of([("live:0", (config, held))], market)["live:0"], expected, config)


def assert_same_bytes(one: Mapping[str, Any], two: Mapping[str, Any]) -> None:
    """`culprit` is a row number: the only thing that may differ with the place in the book."""
    assert one.keys() == two.keys()
    for name, figure in one.items():
        for column in figure.dtype.names:
            if column != "culprit" and (figure["state"] or column in ("state", "code")):
                assert figure[column].tobytes() == two[name][column].tobytes(), (name, column)
