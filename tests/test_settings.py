"""Settings: what wins over what, and one clear line for whatever is wrong."""

import re
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import pytest

from copyrisk.errors import ConfigError
from copyrisk.log import redacted
from copyrisk.settings import SECTIONS, load_settings
from copyrisk.terms import Hedging, MarginPrice, RateSide

FULL = """
[redis]
url = "redis://user:secret@host:6379/1"
connect_timeout_ms = 500
[tick]
period_ms = 100
[valuation]
rate_side = "side"
margin_price = "open"
hedging = 50
quote_max_age_ms = 0
[valuation.hedging_by_symbol]
EURUSD = "net"
[valuation.quote_max_age_ms_by_type]
4 = 60000
[valuation.quote_max_age_ms_by_symbol]
XAUUSD = 5000
[cutoff]
warning_level_pct = 80
critical_level_pct = 20.5
[market]
timezone = "Europe/London"
week_open = "Sun 22:00"
week_close = "Fri 22:00"
always_open = true
[log]
format = "json"
level = "debug"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    return path


def test_the_defaults_are_those_of_the_contract() -> None:
    settings = load_settings(None, {}, {})
    rules = settings.rules()
    assert (settings.redis.url, settings.tick.period_ms) == (None, 200)
    assert (rules.rate_side, rules.margin_price, rules.hedging) == (
        RateSide.ASK,
        MarginPrice.CURRENT,
        Hedging.parse("max"),
    )
    assert (rules.quote_max_age_ms, rules.warning_level_pct, rules.critical_level_pct) == (30_000, 50.0, 10.0)


def test_a_full_file_is_read(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, FULL), {}, {})
    rules = settings.rules()
    assert rules.hedging == Hedging.parse(50)
    assert rules.hedging_of("EURUSD") == Hedging.parse("net")
    assert rules.max_age_ms("BTCUSD", 4) == 60_000
    assert rules.max_age_ms("XAUUSD", 2) == 5_000
    assert rules.max_age_ms("GBPUSD", 1) == 0
    assert rules.margin_at_open(1)
    assert (rules.warning_level_pct, rules.critical_level_pct) == (80.0, 20.5)
    assert settings.hours().always_open


def test_flags_win_over_the_environment_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, FULL)
    environ = {
        "COPYRISK_TICK_MS": "300",
        "COPYRISK_LOG_LEVEL": "error",
        "COPYRISK_VALUATION_HEDGING": "25",
        "PATH": "/bin",
    }
    settings = load_settings(path, environ, {"tick.period_ms": 400})
    assert (settings.tick.period_ms, settings.log.level, settings.log.format) == (400, "error", "json")
    assert settings.rules().hedging == Hedging.parse(25)
    assert load_settings(path, environ, {}).tick.period_ms == 300
    assert load_settings(None, {"COPYRISK_DEBUG": "1", "COPYRISK_MARKET_ALWAYS_OPEN": "true"}, {}).market.always_open


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[ticks]\n", "unknown section 'ticks', did you mean tick?"),
        ("[tick]\nperiod = 1\n", "unknown key 'period', did you mean period_ms?"),
        ("tick = 1\n", "must be a section"),
        ("[tick]\nperiod_ms = 9\n", "a whole number from 10 to 60000, found 9"),
        ("[tick]\nperiod_ms = 10.5\n", "found 10.5"),
        ("[tick]\nperiod_ms = true\n", "found True"),
        ("[valuation]\nrate_side = 'bid'\n", "one of ask, side, mid"),
        ("[valuation]\nhedging = 101\n", "percentage from 0 to 100"),
        ("[valuation]\nhedging = 'most'\n", "found 'most'"),
        ("[valuation.hedging_by_symbol]\neur = 'max'\n", "symbols as keys"),
        ("[valuation.quote_max_age_ms_by_type]\n5 = 1\n", "instrument types 1 to 4"),
        ("[valuation]\nhedging_by_symbol = 3\n", "a table"),
        ("[cutoff]\ncritical_level_pct = 60\n", "is above"),
        ("[cutoff]\ncritical_level_pct = -1\n", "found -1"),
        ("[cutoff]\ncritical_level_pct = nan\n", "found nan"),
        ("[market]\ntimezone = 'Mars/Base'\n", "a time zone"),
        ("[market]\ntimezone = '../../etc/passwd'\n", "a time zone"),
        ("[market]\nweek_open = 'Sunday'\n", "a time of the week"),
        ("[log]\nlevel = 'loud'\n", "one of debug"),
        ("[redis]\nurl = 7\n", "expected a text, found a value"),
        ("not toml", "not TOML"),
    ],
)
def test_what_is_wrong_is_one_clear_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as failure:
        load_settings(written(tmp_path, text), {}, {})
    assert said in str(failure.value)
    assert "\n" not in str(failure.value)
    assert "settings.toml" in str(failure.value) or "cutoff." in str(failure.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("COPYRISK_TICK_MS", "1e3"), ("COPYRISK_TICK_MSS", "1"), ("COPYRISK_CUTOFF_WARNING_LEVEL_PCT", "x")],
)
def test_the_environment_is_checked_too(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}|environment"):
        load_settings(None, {name: value}, {})


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_settings(tmp_path / "none.toml", {}, {})
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not TOML"):
        load_settings(tmp_path / "binary.toml", {}, {})
    with pytest.raises(ConfigError):
        load_settings(tmp_path, {}, {})


def test_passwords_stay_out_of_log_lines() -> None:
    assert (
        redacted("at redis://user:secret@host:1/0, or rediss://:p@h")
        == "at redis://user:***@host:1/0, or rediss://:***@h"
    )


def test_the_page_of_settings_is_complete() -> None:
    page = (Path(__file__).parent.parent / "docs" / "settings.md").read_text()
    rows = set(re.findall(r"^\| `(\w+\.\w+)` \|", page, re.MULTILINE))
    known: set[Any] = {
        f"{section}.{setting.name}" for section, kind in SECTIONS.items() for setting in dataclass_fields(kind)
    }
    assert rows == known


def test_a_database_is_named_by_its_url_and_its_password_is_not_shown(tmp_path: Path) -> None:
    chosen = load_settings(None, {}, {}).database
    assert (chosen.url, chosen.id_column, chosen.books_balance) == (None, "id", True)
    environ = {"COPYRISK_DATABASE_URL": "postgresql://u:secret@h/d", "COPYRISK_DATABASE_BOOKS_BALANCE": "false"}
    chosen = load_settings(written(tmp_path, "[database]\nid_column = 'account_number'\n"), environ, {}).database
    assert (chosen.url, chosen.id_column, chosen.books_balance) == (
        "postgresql://u:secret@h/d",
        "account_number",
        False,
    )
    for text in ("url = ['sqlite://u:secret@x']", "books_balance = 'maybe'", "id_column = ''"):
        with pytest.raises(ConfigError) as failure:
            load_settings(written(tmp_path, f"[database]\n{text}\n"), {}, {})
        assert "secret" not in str(failure.value) and "settings.toml: database." in str(failure.value)


@pytest.mark.parametrize(("given", "nice"), [("-5", -5), (0, 0), ("19", 19), (-20, -20)])
def test_a_priority(given: object, nice: int) -> None:
    assert load_settings(None, {}, {"replication.nice": given}).replication.nice == nice


@pytest.mark.parametrize("given", ["", "-", "20", -21, "1.5", 1.0, True, "٣", "--1", "low"])
def test_what_is_no_priority(given: object) -> None:
    with pytest.raises(ConfigError, match="from -20 to 19"):
        load_settings(None, {}, {"replication.nice": given})
