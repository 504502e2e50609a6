"""Whatever text an account's setting holds, its orders go one of the ways of the contract's table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copyrisk.errors import UnsupportedFlow
from copyrisk.flow import select_flow
from copyrisk.terms import AccountType, Flow

OTHERWISE = {"demo": "local", "live": None, "strategy_provider": "provider", "copy_follower": "provider"}
kinds = pytest.mark.parametrize("kind", AccountType)

spaces = st.text(alphabet=" \t\r\n", max_size=3)


def cased(word: str) -> st.SearchStrategy[str]:
    return st.tuples(*[st.sampled_from([letter, letter.upper()]) for letter in word]).map("".join)


@kinds
@given(before=spaces, rock=cased("rock"), barclays=cased("barclays"), after=spaces)
def test_case_and_space_do_not_matter(kind: AccountType, before: str, rock: str, barclays: str, after: str) -> None:
    assert select_flow(kind, before + rock + after) is Flow.LOCAL
    provider = Flow.LOCAL if kind is AccountType.DEMO else Flow.PROVIDER
    assert select_flow(kind, before + barclays + after) is provider


@kinds
@pytest.mark.parametrize("setting", [None, "", "  ", "rocks", "rock,barclays", "0", "none", "{rock}", "x" * 1_000_000])
def test_no_setting_and_any_other_go_the_same_way(kind: AccountType, setting: str | None) -> None:
    expected = OTHERWISE[kind.value]
    if expected is not None:
        assert select_flow(kind, setting) == expected
        return
    with pytest.raises(UnsupportedFlow) as refusal:
        select_flow(kind, setting)
    assert refusal.value.code == "unsupported_flow"
    assert len(str(refusal.value)) < 200 and "\n" not in str(refusal.value)


@given(st.text(max_size=20))
def test_an_unknown_type_has_no_flow(kind: str) -> None:
    if kind in set(AccountType):
        return
    for setting in ("rock", "barclays", None):
        with pytest.raises(UnsupportedFlow):
            select_flow(kind, setting)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("demo", ("local", "local", "local", "local")),
        ("live", ("local", "provider", None, None)),
        ("strategy_provider", ("local", "provider", "provider", "provider")),
        ("copy_follower", ("local", "provider", "provider", "provider")),
    ],
)
def test_the_flow_table_of_the_contract(kind: str, expected: tuple[str | None, ...]) -> None:
    for setting, flow in zip((" Rock ", "BARCLAYS", None, "else"), expected, strict=True):
        if flow is None:
            with pytest.raises(UnsupportedFlow) as refusal:
                select_flow(kind, setting)
            assert refusal.value.code == "unsupported_flow"
        else:
            assert select_flow(kind, setting) == flow
    with pytest.raises(UnsupportedFlow):
        select_flow("admin", "rock")
