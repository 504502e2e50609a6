"""Who copies whom, as calls; followers and masters by their ids."""

from collections.abc import Mapping, Sequence

from copyrisk import identifiers
from copyrisk.client.copy_models import (
    Acted,
    FollowerPage,
    Relationship,
    RelationshipCheck,
    RelationshipPage,
    SettingsNow,
)
from copyrisk.client.describing import Call, Number, asking, changing, number_text, path_of
from copyrisk.identifiers import Account
from copyrisk.terms import AccountType

_ROOT, _ACCOUNTS = "copy-trading", "accounts"


def _follower(follower_id: str) -> Account:
    return identifiers.account(AccountType.FOLLOWER.value, follower_id)


def _texts(settings: Mapping[str, Number]) -> dict[str, str | None]:
    return {name: number_text(value) for name, value in settings.items()}


def follow(
    master_id: str,
    follower_id: str,
    *,
    investment: Number | None = None,
    account_number: str | None = None,
    email: str | None = None,
    settings: Mapping[str, Number] | None = None,
    idempotency_key: str | None = None,
) -> Call[Acted]:
    """Have a follower copy a master; one without an account gets one with the amount `investment`, in USD."""
    said = {
        **_texts(settings or {}),
        "master_id": master_id,
        "follower_id": follower_id,
        "investment": number_text(investment),
        "account_number": account_number,
        "email": email,
    }
    whose = _follower(follower_id)
    return changing(Acted, path_of(_ROOT, "follow"), whose, said, idempotency_key, is_one_step=False)


def change_settings(
    follower_id: str,
    settings: Mapping[str, Number] | None = None,
    *,
    unset: Sequence[str] = (),
    idempotency_key: str | None = None,
) -> Call[SettingsNow]:
    """Change a follower's copy settings, and take those in `unset` away."""
    said = {**_texts(settings or {}), "unset": list(unset) or None}
    path, whose = path_of(_ROOT, _ACCOUNTS, follower_id), _follower(follower_id)
    return changing(SettingsNow, path, whose, said, idempotency_key, method="PUT", is_one_step=False)


def pause(follower_id: str, *, idempotency_key: str | None = None) -> Call[Acted]:
    """Have a follower get no new copies; what is open stays with its master's closes."""
    path, whose = path_of(_ROOT, _ACCOUNTS, follower_id, "pause"), _follower(follower_id)
    return changing(Acted, path, whose, None, idempotency_key, is_one_step=False)


def resume(follower_id: str, *, idempotency_key: str | None = None) -> Call[Acted]:
    """Have a paused follower copy again."""
    path, whose = path_of(_ROOT, _ACCOUNTS, follower_id, "resume"), _follower(follower_id)
    return changing(Acted, path, whose, None, idempotency_key, is_one_step=False)


def unfollow(follower_id: str, *, keep_open: bool = False, idempotency_key: str | None = None) -> Call[Acted]:
    """End what is between a follower and its master; `keep_open`: although copies are open, which stay open."""
    path, whose = path_of(_ROOT, _ACCOUNTS, follower_id), _follower(follower_id)
    query = {"keep_open": keep_open or None}
    return changing(Acted, path, whose, None, idempotency_key, method="DELETE", query=query, is_one_step=False)


def relationship(follower_id: str) -> Call[Relationship]:
    """A follower, its master and its settings."""
    return asking(Relationship, path_of(_ROOT, _ACCOUNTS, _follower(follower_id).id))


def followers(master_id: str, *, after: str | None = None, limit: int | None = None) -> Call[FollowerPage]:
    """Who copies a master now, by id."""
    path = path_of(_ROOT, "masters", identifiers.check_account_id(master_id), "followers")
    return asking(FollowerPage, path, {"after": after, "limit": limit})


def relationships(*, master_id: str | None = None, cursor: str | None = None) -> Call[RelationshipPage]:
    """Relationships of the caller's accounts, paused ones too, in no order; each may come twice."""
    return asking(RelationshipPage, path_of(_ROOT, "relationships"), {"master_id": master_id, "cursor": cursor})


def check_relationships() -> Call[RelationshipCheck]:
    """All records of all relationships held against each other."""
    return asking(RelationshipCheck, path_of(_ROOT, "relationships", "check"))
