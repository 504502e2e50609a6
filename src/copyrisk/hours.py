"""When the markets are open: instrument types 1 to 3 five days a week, type 4 (crypto) always."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from copyrisk.fields import CRYPTO

_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MINUTES_A_DAY = 24 * 60
_ALL_TYPES = 5


def minute_of_week(text: str) -> int:
    """Minutes from Monday 00:00 to a time such as `Sun 17:00`; `ValueError` on anything else."""
    day, _, clock = text.partition(" ")
    hour, _, minute = clock.partition(":")
    if day not in _WEEKDAYS or not (hour.isdecimal() and minute.isdecimal() and len(hour) == len(minute) == 2):
        raise ValueError(f"not a time of the week such as 'Sun 17:00': {text!r}")
    if int(hour) > 23 or int(minute) > 59:
        raise ValueError(f"not a time of the day: {clock!r}")
    return _WEEKDAYS.index(day) * _MINUTES_A_DAY + int(hour) * 60 + int(minute)


@dataclass(frozen=True, slots=True)
class MarketHours:
    """One trading week, in the time zone that defines it (its daylight saving included)."""

    timezone: str = "America/New_York"
    week_open: str = "Sun 17:00"
    week_close: str = "Fri 17:00"
    always_open: bool = False

    def is_open(self, instrument_type: int, now_ms: int) -> bool:
        """Whether an instrument of this type trades at this time."""
        if self.always_open or instrument_type == CRYPTO:
            return True
        now = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=now_ms)).astimezone(ZoneInfo(self.timezone))
        minute = now.weekday() * _MINUTES_A_DAY + now.hour * 60 + now.minute
        opens, closes = minute_of_week(self.week_open), minute_of_week(self.week_close)
        return opens <= minute < closes if opens < closes else minute >= opens or minute < closes

    def open_by_type(self, now_ms: int) -> npt.NDArray[np.uint8]:
        """(5,) uint8 for `judge_quotes`: [1] to [4] by type, [0] as the five-day markets."""
        return np.array([self.is_open(type_, now_ms) for type_ in range(_ALL_TYPES)], np.uint8)
