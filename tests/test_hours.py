"""The trading week to the millisecond, over both changes of the clocks."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copyrisk.hours import MarketHours, minute_of_week

HOURS = MarketHours()
NEW_YORK = ZoneInfo("America/New_York")
CRYPTO = 4


def utc_ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


#: UTC times at which the week closes and opens, around both changes of the clocks of New York in 2026.
EDGES = [
    ("2026-03-06T22:00", "2026-03-08T21:00"),  # it closes in winter and opens in summer time
    ("2026-03-13T21:00", "2026-03-15T21:00"),
    ("2026-10-23T21:00", "2026-10-25T21:00"),
    ("2026-10-30T21:00", "2026-11-01T22:00"),  # it closes in summer and opens in winter time
    ("2026-11-06T22:00", "2026-11-08T22:00"),
    ("2026-12-25T22:00", "2026-12-27T22:00"),
]


@pytest.mark.parametrize(("closes", "opens"), EDGES)
@pytest.mark.parametrize("instrument_type", [0, 1, 2, 3])
def test_the_week_ends_and_starts_to_the_millisecond(closes: str, opens: str, instrument_type: int) -> None:
    close_ms, open_ms = utc_ms(closes), utc_ms(opens)
    seen = [
        HOURS.is_open(instrument_type, ms)
        for ms in (close_ms - 60_000, close_ms - 1, close_ms, open_ms - 60_000, open_ms - 1, open_ms, open_ms + 60_000)
    ]
    assert seen == [True, True, False, False, False, True, True]


times = st.integers(utc_ms("2020-01-01"), utc_ms("2035-01-01"))


@given(times)
def test_any_time_is_judged_by_the_clocks_of_new_york(now_ms: int) -> None:
    local = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=now_ms)).astimezone(NEW_YORK)
    is_open = {5: False, 4: local.hour < 17, 6: local.hour >= 17}.get(local.weekday(), True)
    assert HOURS.open_by_type(now_ms).tolist() == [is_open] * 4 + [True]


@given(times, st.integers(0, CRYPTO))
def test_crypto_and_markets_that_never_close_are_open(now_ms: int, instrument_type: int) -> None:
    assert HOURS.is_open(CRYPTO, now_ms)
    assert MarketHours(always_open=True).is_open(instrument_type, now_ms)
    assert MarketHours(always_open=True).open_by_type(now_ms).tolist() == [1] * 5


@given(times, st.sampled_from(["UTC", "Europe/London", "Asia/Tokyo"]))
def test_another_week_in_another_zone(now_ms: int, zone: str) -> None:
    local = datetime.fromtimestamp(now_ms / 1000, ZoneInfo(zone))
    hours = MarketHours(timezone=zone, week_open="Mon 08:30", week_close="Fri 18:00")
    minute = local.hour * 60 + local.minute
    inside = {0: minute >= 510, 4: minute < 1080}.get(local.weekday(), local.weekday() < 5)
    assert hours.is_open(1, now_ms) == inside


def at(text: str, zone: str = "America/New_York") -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1000)


@pytest.mark.parametrize(
    ("when", "is_open"),
    [
        ("2026-01-09T16:59:59", True),
        ("2026-01-09T17:00:00", False),
        ("2026-01-10T12:00:00", False),
        ("2026-01-11T16:59:59", False),
        ("2026-01-11T17:00:00", True),
        ("2026-01-14T03:00:00", True),
    ],
)
def test_the_week_of_new_york(when: str, is_open: bool) -> None:
    hours = MarketHours()
    assert [bool(flag) for flag in hours.open_by_type(at(when))] == [is_open] * 4 + [True]
    assert MarketHours(always_open=True).open_by_type(at(when)).all()


def test_the_week_follows_daylight_saving() -> None:
    def opening_hour(day: str) -> int:
        return next(hour for hour in range(24) if MarketHours().is_open(1, at(f"{day}T{hour:02d}:30:00", "UTC")))

    assert (opening_hour("2026-03-01"), opening_hour("2026-03-08")) == (22, 21)
    assert (opening_hour("2026-10-25"), opening_hour("2026-11-01")) == (21, 22)


def test_a_week_that_opens_and_closes_on_the_same_side_of_monday() -> None:
    hours = MarketHours(timezone="UTC", week_open="Mon 08:00", week_close="Fri 18:00")
    assert hours.is_open(1, int(datetime(2026, 1, 5, 8, tzinfo=UTC).timestamp() * 1000))
    assert not hours.is_open(1, int(datetime(2026, 1, 4, 23, tzinfo=UTC).timestamp() * 1000))


@pytest.mark.parametrize("bad", ["", "Sun", "Sun 5:00", "Sun 24:00", "Sun 10:60", "Sunday 10:00", "Sun 10.00"])
def test_times_of_the_week_are_checked(bad: str) -> None:
    with pytest.raises(ValueError, match="not a time"):
        minute_of_week(bad)
