"""What the API knows of who copies whom. Amounts are USD; `None` is not known, never zero."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True, slots=True)
class Acted:
    """What came of a change of a relationship; `behind`: why the broker's database does not say the same yet."""

    follower_id: str
    copy_status: str
    master_id: str | None
    open_copies: tuple[str, ...]
    behind: str


@dataclass(frozen=True, slots=True)
class SettingsNow:
    """A follower's copy settings after a change."""

    follower_id: str
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class FollowerAccount:
    """USD; `state`: whether its portfolio is known, as in `Portfolio`."""

    wallet_balance: Decimal | None
    investment_amount: Decimal | None
    state: str
    equity: Decimal | None
    calc_status: str | None


@dataclass(frozen=True, slots=True)
class Relationship:
    """A follower and its master; `code` is `ok`, or why it cannot be told."""

    follower_id: str
    code: str
    master_id: str | None
    copy_status: str | None
    copies_now: bool
    settings: Mapping[str, str]
    account: FollowerAccount | None


@dataclass(frozen=True, slots=True)
class FollowerPage:
    """Followers that copy a master now, by id; `next` is the `after` of the next page."""

    master_id: str
    count: int
    followers: tuple[Relationship, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class RelationshipPage:
    """Relationships, paused ones too; `next` is the `cursor` of the next page, which may hold some or none."""

    relationships: tuple[Relationship, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class Difference:
    """Records of a follower that do not agree."""

    subject: str
    codes: tuple[str, ...]
    seen: str
    mend: str


@dataclass(frozen=True, slots=True)
class RelationshipCheck:
    """All records held against each other: how many differ, and the first of them."""

    count: int
    differences: tuple[Difference, ...]
