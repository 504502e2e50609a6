"""What the OpenAPI document says of copying: the bodies of changes, and relationships."""

from typing import Any

from copyrisk.api.documents import ID_SCHEMA, PortfolioState, Shape, decimal_schema
from copyrisk.following import SETTING_NAMES
from copyrisk.sizing_terms import AboveMax, BelowMin, LeverageCorrection, Rounding, SizingMode

_LIMITS = ("none", "percentage", "amount")
_WORDS: dict[str, tuple[str, ...]] = {
    "sizing_mode": tuple(SizingMode),
    "rounding": tuple(Rounding),
    "below_min": tuple(BelowMin),
    "above_max": tuple(AboveMax),
    "leverage_correction": tuple(LeverageCorrection),
    "sides_allowed": ("both", "buy", "sell"),
    "copy_sl_mode": _LIMITS,
    "copy_tp_mode": _LIMITS,
    "reverse": ("0", "1"),
}
SYMBOLS = ("symbols_allowed", "symbols_denied")


def _setting(name: str) -> dict[str, Any]:
    if name in _WORDS:
        return {"type": "string", "enum": [str(word) for word in _WORDS[name]]}
    if name in SYMBOLS:
        return {"type": "string", "description": "symbols, separated by commas"}
    return decimal_schema(100 if name in ("stop_copying_on_drawdown", "sl_percentage", "risk_pct") else None)


#: Settings whose values are words: a number would be no text.
WORDS = (*_WORDS, *SYMBOLS)
_SETTINGS = {name: _setting(name) for name in SETTING_NAMES}
FOLLOW_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "master_id": ID_SCHEMA,
        "follower_id": ID_SCHEMA,
        "investment": decimal_schema() | {"description": "USD that a follower without an account begins with"},
        "account_number": {"type": "string", "maxLength": 64},
        "email": {"type": "string", "maxLength": 320},
        **_SETTINGS,
    },
    "required": ["master_id", "follower_id"],
    "additionalProperties": False,
}
SETTINGS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        **_SETTINGS,
        "unset": {
            "type": "array",
            "items": {"type": "string", "enum": list(SETTING_NAMES)},
            "uniqueItems": True,
            "description": "settings that are taken away, so that the broker's hold",
        },
    },
    "minProperties": 1,
    "additionalProperties": False,
}


class Acted(Shape):
    """What came of a change of a relationship.

    `master_id`: who is copied, or was until now. `behind` says why the broker's database does not say the same yet;
    empty: it does, or there is none.
    """

    follower_id: str
    copy_status: str
    master_id: str | None
    open_copies: list[str]
    behind: str


class SettingsNow(Shape):
    """A follower's copy settings after a change."""

    follower_id: str
    settings: dict[str, str]


class FollowerAccount(Shape):
    """USD; null is not known. `state`: whether its portfolio is known, as in `/api/portfolios`."""

    wallet_balance: float | None
    investment_amount: float | None
    state: PortfolioState
    equity: float | None
    calc_status: str | None


class Relationship(Shape):
    """A follower and its master.

    `code` says why it cannot be told (`ok`: it can); `copies_now`: it is in its master's set and active. `account` is
    null for callers who may see the master and not this follower.
    """

    follower_id: str
    code: str
    master_id: str | None
    copy_status: str | None
    copies_now: bool
    settings: dict[str, str]
    account: FollowerAccount | None


class FollowerPage(Shape):
    """Followers that copy a master now, by id; `next`: the `after` of the next page."""

    master_id: str
    count: int
    followers: list[Relationship]
    next: str | None


class Difference(Shape):
    """Records of a follower that do not agree."""

    subject: str
    codes: list[str]
    seen: str
    mend: str


class RelationshipPage(Shape):
    """Relationships, paused ones too; `next`: the `cursor` of the next page, which may hold some or none."""

    relationships: list[Relationship]
    next: str | None


class RelationshipCheck(Shape):
    """All records held against each other: how many differ, and the first of them."""

    count: int
    differences: list[Difference]
