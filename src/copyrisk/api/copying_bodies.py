"""Bodies of changes of relationships: exact texts, each held against what it may be."""

from collections.abc import Mapping
from typing import Any

from copyrisk import identifiers
from copyrisk.api.answers import ApiError
from copyrisk.api.bodies import check_names
from copyrisk.api.copying_acts import IDENTITY, Following
from copyrisk.api.copying_models import WORDS
from copyrisk.following import SETTING_NAMES, FollowRequest, check_request, check_settings

IDENTITY_FIELDS = ("account_number", "email")


def parse_following(body: Mapping[str, Any]) -> tuple[Following, dict[str, Any]]:
    """What is asked for, and all of it as it goes into digest and audit.

    Raises
    ------
    ApiError, Refused, InvalidId
    """
    check_names(body, ("master_id", "follower_id", "investment", *IDENTITY_FIELDS, *SETTING_NAMES))
    master = identifiers.check_account_id(_word(body, "master_id", "invalid_account_id"))
    follower = identifiers.check_account_id(_word(body, "follower_id", "invalid_account_id"))
    texts = {name: _word(body, name) for name in IDENTITY_FIELDS if name in body}
    amount = _text(body, "investment") if "investment" in body else None
    given = {name: _setting(body, name) for name in SETTING_NAMES if name in body}
    request = FollowRequest(follower, amount, texts.get("account_number", ""), texts.get("email", ""), given)
    candidate = check_request(request, master)
    said = {"master": master, "investment": candidate.investment, IDENTITY: texts, "settings": candidate.settings}
    return Following(master, request), said


def parse_settings_change(body: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Settings as they are stored, and those that are taken away; raises as `parse_following`."""
    check_names(body, (*SETTING_NAMES, "unset"))
    unset = body.get("unset", [])
    is_list = isinstance(unset, list) and all(type(name) is str and name in SETTING_NAMES for name in unset)
    if not is_list or len(set(unset)) < len(unset) or not set(unset).isdisjoint(body):
        raise ApiError("unset lists names of settings, each once, that are not given as well", code="invalid_unset")
    if not unset and len(body) == ("unset" in body):
        raise ApiError("there is nothing to change", code="missing_settings")
    return check_settings({name: _setting(body, name) for name in body if name != "unset"}), unset


def _setting(body: Mapping[str, Any], name: str) -> str:
    return _word(body, name) if name in WORDS else _text(body, name)


def _word(body: Mapping[str, Any], name: str, code: str = "") -> str:
    """A text that is none of a number's."""
    if type(body.get(name)) is not str:
        raise ApiError(f"{name} must be a text", code=code or f"invalid_{name}")
    return str(body[name])


def _text(body: Mapping[str, Any], name: str) -> str:
    """A number, as it was sent."""
    if not isinstance(body.get(name), str):
        raise ApiError(f"{name} must be a number", code=f"invalid_{name}")
    return str(body[name])
