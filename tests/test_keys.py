"""No text builds another account's keys: the grammar of ids as a law, and the hash tags."""

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copyrisk import identifiers, keys
from copyrisk.errors import InvalidId
from copyrisk.terms import ACCOUNT_TABLES, AccountType

#: The four patterns of the contract, spelled once more; each must cover the whole id.
GRAMMAR: dict[Callable[[str], str], str] = {
    identifiers.check_account_id: r"[A-Za-z0-9_-]{1,64}",
    identifiers.check_order_id: r"[A-Za-z0-9_-]{1,64}",
    identifiers.check_symbol: r"[A-Z0-9][A-Z0-9._#-]{0,31}",
    identifiers.check_group: r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,31}",
}
checks = pytest.mark.parametrize("check", GRAMMAR, ids=lambda check: check.__name__)
texts = st.one_of(
    st.text(alphabet="aZ0_-. #{}:\n\r\0*é٣", max_size=70),
    st.from_regex(r"[A-Za-z0-9_. #-]{0,70}\n?", fullmatch=True),
    st.text(max_size=8),
)


def refusal(check: Callable[[str], object], text: str) -> InvalidId | None:
    try:
        check(text)
    except InvalidId as refused:
        return refused
    return None


@checks
@given(text=texts)
def test_an_id_is_taken_exactly_if_the_contract_allows_it(check: Callable[[str], str], text: str) -> None:
    assert (refusal(check, text) is None) == bool(re.fullmatch(GRAMMAR[check], text, re.ASCII))


@checks
@pytest.mark.parametrize("text", ["x" * 1_000_000, "a\nb" * 40, "\N{SNOWMAN}" * 90, "{" * 99, "\x1b[2J"])
def test_a_refusal_is_one_short_printable_line(check: Callable[[str], str], text: str) -> None:
    refused = refusal(check, text)
    assert refused is not None
    assert str(refused).isascii() and str(refused).isprintable()
    assert len(str(refused)) < 1000
    assert refused.code.startswith("invalid_")


account_ids = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)


@given(st.sampled_from(AccountType), account_ids, account_ids)
def test_everything_of_an_account_lies_in_its_hash_slot(kind: AccountType, user_id: str, order_id: str) -> None:
    """The cluster hashes what stands between the first `{` and the next `}`."""
    account = identifiers.account(kind.value, user_id)
    for key in (
        keys.config(account),
        keys.holding(account, order_id),
        keys.orders_index(account),
        keys.portfolio(account),
    ):
        assert key.partition("{")[2].partition("}")[0] == f"{kind.value}:{user_id}" == str(account)


@given(st.one_of(st.binary(max_size=40), st.text(alphabet="user:{live}configX\n", max_size=30).map(str.encode)))
def test_a_scanned_key_is_an_account_or_refused(key: bytes) -> None:
    try:
        account = account_of_key(key)
    except InvalidId:
        return
    whole = (keys.config(account).encode(), keys.orders_index(account).encode())
    assert key in whole or key.startswith(keys.holding(account, "").encode())


@pytest.mark.parametrize(
    "key",
    [
        b"user:{live:1}:config\n",
        b"user:{live:1\n}:config",
        b"user:{live:1}:config}",
        b"{user:{live:1}:config",
        b"user:{live:{1}}:config",
        "user:{live:é}:config".encode(),
        b"user:{live:\xd9\xa3}:config",
        b"user:{live:1:2}:config",
        b"user:{LIVE:1}:config",
        b"user_portfolio:{live:1}",
        b"user_holdings:{live:1:O1",
        b"user:{" + b"x" * 1_000_000 + b"}:config",
    ],
)
def test_keys_that_are_not_quite_an_accounts_are_refused(key: bytes) -> None:
    with pytest.raises(InvalidId):
        account_of_key(key)


def test_what_the_project_adds_is_its_own() -> None:
    assert keys.TICK == "copyrisk:tick"
    assert (keys.CONFIG.pattern, keys.ORDERS_INDEX.pattern) == ("user:{*}:config", "user_orders_index:{*}")


ACCOUNT = identifiers.account("copy_follower", "F-1_a")


def test_keys_are_those_of_the_contract() -> None:
    assert keys.config(ACCOUNT) == "user:{copy_follower:F-1_a}:config"
    assert keys.holding(ACCOUNT, "O9") == "user_holdings:{copy_follower:F-1_a}:O9"
    assert keys.orders_index(ACCOUNT) == "user_orders_index:{copy_follower:F-1_a}"
    assert keys.portfolio(ACCOUNT) == "user_portfolio:{copy_follower:F-1_a}"
    assert keys.symbol_holders("EURUSD", AccountType.LIVE) == "symbol_holders:EURUSD:live"
    assert keys.market("XAUUSD") == "market:XAUUSD"
    assert keys.group("Standard", "EURUSD") == "groups:{Standard}:EURUSD"
    assert keys.order_data("O9") == "order_data:O9"
    assert keys.order_triggers("O9") == "order_triggers:O9"
    assert keys.active_followers("M1") == "copy_master_followers:M1:active"
    assert keys.provider_of("F1") == "copy_follower_master:F1:provider_id"
    channels = (keys.MARKET_PRICE_UPDATES, keys.PORTFOLIO_UPDATES, keys.PORTFOLIO_FORCE_RECALC)
    assert channels == ("market_price_updates", "portfolio_updates", "portfolio_force_recalc")
    assert keys.TICK.startswith("copyrisk:")
    assert keys.STANDARD_GROUP == "Standard"


def test_account_types_and_tables_are_those_of_the_contract() -> None:
    assert {kind.value: table for kind, table in ACCOUNT_TABLES.items()} == {
        "live": "live_users",
        "demo": "demo_users",
        "strategy_provider": "strategy_provider_accounts",
        "copy_follower": "copy_follower_accounts",
    }


def account_of_key(key: bytes) -> identifiers.Account:
    tag = keys.tag_of_key(key)
    if tag is None:
        raise InvalidId("not shaped like an account's key")
    return identifiers.parse_account(tag.decode("ascii"))


BAD_IDS = ["", "a b", "a{b", "a}b", "a\n", "\n", "a:b", "ä", "١", "a" * 65, "a\x00", "*", "../x"]


@pytest.mark.parametrize("bad", BAD_IDS)
def test_ids_outside_the_grammar_build_no_key(bad: str) -> None:
    for check in (identifiers.check_account_id, identifiers.check_order_id):
        with pytest.raises(InvalidId):
            check(bad)
    with pytest.raises(InvalidId):
        identifiers.account("live", bad)


@pytest.mark.parametrize("bad", ["", "eurusd", ".EUR", "EUR USD", "EUR{", "E" * 33, "EURUSD\n", "ÉUR"])
def test_symbols_outside_the_grammar_are_refused(bad: str) -> None:
    with pytest.raises(InvalidId):
        identifiers.check_symbol(bad)


@pytest.mark.parametrize("bad", ["", " VIP", "V}P", "-x", "V" * 33, "VIP\n"])
def test_groups_outside_the_grammar_are_refused(bad: str) -> None:
    with pytest.raises(InvalidId):
        identifiers.check_group(bad)


@pytest.mark.parametrize("bad", ["admin", "LIVE", "live ", "", "live\n"])
def test_other_account_types_are_refused_by_name(bad: str) -> None:
    with pytest.raises(InvalidId) as refusal:
        identifiers.account(bad, "1")
    assert refusal.value.code == "invalid_user_type"


def test_limits_of_the_grammar_are_inside_it() -> None:
    assert (
        identifiers.check_account_id("a" * 64)
        and identifiers.check_symbol("A" + "#" * 31)
        and identifiers.check_group("A" * 32)
    )


@given(st.sampled_from(AccountType), st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True))
def test_an_account_survives_its_keys(kind: AccountType, user_id: str) -> None:
    account = identifiers.account(kind.value, user_id)
    assert account_of_key(keys.config(account).encode()) == account
    assert account_of_key(keys.orders_index(account).encode()) == account
    assert identifiers.parse_account(str(account)) == account


@pytest.mark.parametrize(
    "key",
    [b"user:{live:1}:configs", b"user:{live:1}x}:config", b"user:live:1:config", b"user:{live}:config", b"\xff", b""],
)
def test_what_only_looks_like_an_account_key_is_refused(key: bytes) -> None:
    with pytest.raises(InvalidId):
        account_of_key(key)
