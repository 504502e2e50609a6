"""No text builds another account's keys: the grammar of ids as a law, and the hash tags."""

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copyrisk import keys
from copyrisk.errors import InvalidId
from copyrisk.terms import AccountType

#: The four patterns of the contract, spelled once more; each must cover the whole id.
GRAMMAR: dict[Callable[[str], str], str] = {
    keys.check_account_id: r"[A-Za-z0-9_-]{1,64}",
    keys.check_order_id: r"[A-Za-z0-9_-]{1,64}",
    keys.check_symbol: r"[A-Z0-9][A-Z0-9._#-]{0,31}",
    keys.check_group: r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,31}",
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
    account = keys.account(kind.value, user_id)
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
        account = keys.account_of_key(key)
    except InvalidId:
        return
    assert key in (keys.config(account).encode(), keys.orders_index(account).encode())


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
        b"user_holdings:{live:1}:O1",
        b"user:{" + b"x" * 1_000_000 + b"}:config",
    ],
)
def test_keys_that_are_not_quite_an_accounts_are_refused(key: bytes) -> None:
    with pytest.raises(InvalidId):
        keys.account_of_key(key)


def test_what_the_project_adds_is_its_own() -> None:
    assert keys.TICK == "copyrisk:tick"
    assert (keys.CONFIG_PATTERN, keys.ORDERS_INDEX_PATTERN) == ("user:{*}:config", "user_orders_index:{*}")
