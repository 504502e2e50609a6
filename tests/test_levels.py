"""Which levels hold: of accounts, of the settings, and of the profile over both."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copyrisk import fields, identifiers, layout
from copyrisk.errors import ConfigError
from copyrisk.levels import judge_levels
from copyrisk.rules import ValuationRules
from copyrisk.settings import Settings, load_settings
from tests.books import PlainBook, fill_account, read

NONE, RETAIL = ValuationRules(), ValuationRules(warning_level_pct=100, critical_level_pct=50, critical_floor_pct=50)


def judged(warning: str | None, critical: str | None, rules: ValuationRules = NONE) -> tuple[float, float, bool]:
    """Levels of an account that sets these texts."""
    names = PlainBook(rules).names
    config = {"wallet_balance": "1", "leverage": "1", "auto_cutoff_level": warning, "auto_liquidation_level": critical}
    rows = fields.judge_accounts(read(fields.ACCOUNT_COLUMNS, names, [config]), names)
    (found_warning,), (found_critical,), (replaced,) = judge_levels(rows, rules)
    return float(found_warning), float(found_critical), bool(replaced)


@pytest.mark.parametrize(
    ("warning", "critical", "levels"),
    [
        (None, None, (50, 10, False)),
        ("60", "20", (60, 20, False)),
        ("60", None, (60, 10, False)),
        ("30", "30", (30, 30, False)),
        ("0", "0", (0, 0, False)),
        ("1000", "1000", (1000, 1000, False)),
        ("x", "20", (50, 20, True)),
        ("", None, (50, 10, True)),
        ("nan", "inf", (50, 10, True)),
        ("60", "-1", (60, 10, True)),
        ("1000.01", "20", (50, 20, True)),
        ("60", "1001", (60, 10, True)),
        ("20", "60", (50, 10, True)),
        ("5", None, (50, 10, True)),
    ],
)
def test_levels_that_make_no_sense_are_the_defaults(warning: Any, critical: Any, levels: Any) -> None:
    assert judged(warning, critical) == levels


@pytest.mark.parametrize(
    ("warning", "critical", "levels"),
    [
        (None, None, (100, 50, False)),
        ("120", "50", (120, 50, False)),
        ("120", "80", (120, 80, False)),
        ("120", "49.99", (120, 50, True)),
        ("40", None, (100, 50, True)),
        ("40", "10", (100, 50, True)),
    ],
)
def test_no_critical_level_is_below_the_floor(warning: Any, critical: Any, levels: Any) -> None:
    assert judged(warning, critical, RETAIL) == levels


numbers = st.one_of(st.none(), st.sampled_from([-1.0, 0.0, 10.0, 50.0, 100.0, 1000.0, 1001.0]), st.floats(-5, 1100))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(numbers, numbers, st.booleans()), max_size=8), st.sampled_from([NONE, RETAIL]))
def test_what_holds_always_makes_sense(given: list[tuple[Any, Any, bool]], rules: ValuationRules) -> None:
    rows = np.zeros(len(given), layout.ACCOUNT_READ)
    for row, (warning, critical, is_valid) in zip(rows, given, strict=True):
        row["warning_level_pct"] = np.nan if warning is None else warning
        row["critical_level_pct"] = np.nan if critical is None else critical
        row["levels_valid"] = is_valid
    before = rows.copy()
    warnings, criticals, replaced = judge_levels(rows, rules)
    assert rows.tobytes() == before.tobytes()
    assert ((rules.critical_floor_pct <= criticals) & (criticals <= warnings) & (warnings <= 1000)).all()
    for (warning, critical, is_valid), held, was_replaced in zip(
        given, zip(warnings, criticals, strict=True), replaced, strict=True
    ):
        asked = (
            rules.warning_level_pct if warning is None else warning,
            rules.critical_level_pct if critical is None else critical,
        )
        assert bool(was_replaced) == (not is_valid or held != asked)


def test_the_book_says_once_whose_levels_were_replaced() -> None:
    book = PlainBook(RETAIL)
    config = {"wallet_balance": "1", "leverage": "1", "auto_liquidation_level": "10"}
    row = fill_account(book, "live:1", config, [])
    assert book.accounts[row]["critical_level_pct"] == 50
    other = book.ensure_account(identifiers.parse_account("live:2"))
    rows = np.array([row, other], np.int32)
    configs = fields.judge_accounts(read(fields.ACCOUNT_COLUMNS, book.names, [config, config]), book.names)
    changed, replaced = book.set_accounts(rows, configs)
    assert (changed.tolist(), replaced.tolist()) == ([False, True], [False, True])


def loaded(tmp_path: Path, cutoff: str, environ: Mapping[str, str] | None = None) -> Settings:
    path = tmp_path / "copyrisk.toml"
    path.write_text(f"[cutoff]\n{cutoff}\n")
    return load_settings(path, environ or {}, {})


def test_the_profile_sets_defaults_and_a_floor(tmp_path: Path) -> None:
    plain = loaded(tmp_path, "")
    assert (plain.cutoff.profile, plain.cutoff.negative_balance_protection) == ("none", False)
    assert (plain.rules().warning_level_pct, plain.rules().critical_level_pct) == (50, 10)
    retail = loaded(tmp_path, "profile = 'retail_eu_uk'")
    assert retail.cutoff.negative_balance_protection is True
    assert retail.rules() == RETAIL
    given = loaded(tmp_path, "profile = 'retail_eu_uk'\nwarning_level_pct = 120\ncritical_level_pct = 60")
    assert (given.rules().warning_level_pct, given.rules().critical_level_pct) == (120, 60)
    by_variable = loaded(tmp_path, "warning_level_pct = 90", {"COPYRISK_CUTOFF_PROFILE": "retail_eu_uk"})
    assert (by_variable.rules().warning_level_pct, by_variable.rules().critical_level_pct) == (90, 50)
    assert loaded(tmp_path, "negative_balance_protection = true").cutoff.negative_balance_protection is True


@pytest.mark.parametrize(
    ("cutoff", "code", "says"),
    [
        ("profile = 'retail_eu_uk'\ncritical_level_pct = 49", "level_below_floor", "critical_level_pct .49. .* .50."),
        ("profile = 'retail_eu_uk'\nwarning_level_pct = 40", "bad_configuration", "is above"),
        ("profile = 'retail_eu_uk'\nnegative_balance_protection = false", "protection_required", "must be true"),
        ("profile = 'retail_us'", "bad_configuration", "one of none, retail_eu_uk"),
        ("profile = ['retail_eu_uk']", "bad_configuration", "one of none, retail_eu_uk"),
        ("negative_balance_protection = 2", "bad_configuration", "true or false"),
        ("critical_level_pct = 60", "bad_configuration", "is above"),
    ],
)
def test_a_lower_setting_refuses_to_load(tmp_path: Path, cutoff: str, code: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        loaded(tmp_path, cutoff)
    assert refused.value.code == code


def test_rules_below_their_own_floor_are_refused() -> None:
    with pytest.raises(ConfigError, match="below the floor"):
        ValuationRules(critical_floor_pct=50)
