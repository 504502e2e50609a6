"""Who may follow whom, and with what: requests held against the grammar, and a new follower's configuration."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum

from copyrisk import identifiers
from copyrisk.decimals import decimal_text, parse_decimal
from copyrisk.errors import InvalidId, Refused
from copyrisk.identifiers import Account
from copyrisk.sizing_terms import AboveMax, BelowMin, LeverageCorrection, Rounding, SizingMode
from copyrisk.terms import AccountType

DONE = "done"
COPY_STATUS, ACCOUNT_NUMBER, WALLET_BALANCE = "copy_status", "account_number", "wallet_balance"
LEVERAGE, GROUP = "leverage", "group"
#: What a new follower takes over from its master.
INHERITED = (GROUP, LEVERAGE, "sending_orders", "auto_cutoff_level", "auto_liquidation_level")
_HIGHEST_USD = Decimal(10) ** 13  # from there on figures are taken for an error
_HIGHEST_PCT = Decimal(100)
_NUMBER_CHARS, _EMAIL_CHARS, _SYMBOLS_CHARS = 64, 320, 4_096


class CopyStatus(StrEnum):
    """`copy_status` of a follower: only an active one gets new copies."""

    ACTIVE = "active"
    PAUSED = "paused"
    STOPPED = "stopped"


def status_word(stored: str) -> str:
    """A stored `copy_status` as it is compared: other services may write it in capitals."""
    return stored.strip().lower()


@dataclass(frozen=True, slots=True)
class FollowRequest:
    """Who is to follow, with what.

    Attributes
    ----------
    follower : str
        Its id, or `copy_follower:id`.
    investment_usd : str or None
        A plain decimal: what a follower that has no configuration yet starts with.
    settings : mapping of str to str
        Copy settings of its configuration, but `copy_status`.
    """

    follower: str
    investment_usd: str | None = None
    account_number: str = ""
    email: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request that is well formed, with the words that will be stored."""

    follower: str
    investment: str | None
    identity: Mapping[str, str]
    settings: Mapping[str, str]

    @property
    def account(self) -> Account:
        """Whose configuration it is."""
        return account_of(self.follower)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it for one follower.

    Attributes
    ----------
    code : str
        `done`, or why it was refused.
    open_copies : tuple of str
        Orders that the follower still has from a master.
    behind : str
        Why the database does not say the same yet; empty if it does, or if there is none.
    """

    follower: str
    code: str = DONE
    message: str = ""
    open_copies: tuple[str, ...] = ()
    behind: str = ""

    @property
    def is_done(self) -> bool:
        """Whether it is as it was asked for."""
        return self.code == DONE


def check_master(given: str) -> str:
    """The id of a master, given as such or as `strategy_provider:id`.

    Raises
    ------
    Refused, InvalidId
        `follower_as_master`, `not_a_master`, `invalid_account_id`, `invalid_user_type`.
    """
    if ":" not in given:
        return identifiers.check_account_id(given)
    account = identifiers.parse_account(given)
    if account.type is AccountType.FOLLOWER:
        raise Refused(f"{account} is a follower, and cannot be followed", code="follower_as_master")
    if account.type is not AccountType.MASTER:
        raise Refused(f"{account} is no master", code="not_a_master")
    return account.id


def check_follower(given: str, master: str | None = None) -> str:
    """The id of a follower, given as such or as `copy_follower:id`.

    Raises
    ------
    Refused, InvalidId
        `self_follow`, `not_a_follower`, `invalid_account_id`, `invalid_user_type`.
    """
    if ":" not in given:
        return identifiers.check_account_id(given)
    account = identifiers.parse_account(given)
    if account == (AccountType.MASTER, master):
        raise Refused(f"{account} would follow itself", code="self_follow")
    if account.type is not AccountType.FOLLOWER:
        raise Refused(f"{account} is no follower", code="not_a_follower")
    return account.id


def _above_zero(text: str) -> str | None:
    value = parse_decimal(text)
    return None if value is None or value <= 0 else decimal_text(value)


def _percentage(text: str) -> str | None:
    value = parse_decimal(text)
    return None if value is None or not 0 < value <= _HIGHEST_PCT else decimal_text(value)


def _one_of(*words: str) -> Callable[[str], str | None]:
    return lambda text: text if text in words else None


def _symbols(text: str) -> str | None:
    names = [name.strip() for name in text.split(",")]
    try:
        joined = ",".join(identifiers.check_symbol(name) for name in names)
    except InvalidId:
        return None
    return joined if len(joined) <= _SYMBOLS_CHARS else None


#: How each copy setting is written; `None`: it cannot be that.
_SETTINGS: Mapping[str, Callable[[str], str | None]] = {
    **dict.fromkeys(("multiplier", "max_lot_size", "max_daily_loss", "sl_amount", "tp_percentage"), _above_zero),
    **dict.fromkeys(("tp_amount", "fixed_lots", "target_leverage", "lift_risk_limit"), _above_zero),
    **dict.fromkeys(("stop_copying_on_drawdown", "sl_percentage", "risk_pct"), _percentage),
    "sizing_mode": _one_of(*SizingMode),
    "rounding": _one_of(*Rounding),
    "below_min": _one_of(*BelowMin),
    "above_max": _one_of(*AboveMax),
    "leverage_correction": _one_of(*LeverageCorrection),
    "sides_allowed": _one_of("both", "buy", "sell"),
    **dict.fromkeys(("copy_sl_mode", "copy_tp_mode"), _one_of("none", "percentage", "amount")),
    "reverse": _one_of("0", "1"),
    **dict.fromkeys(("symbols_allowed", "symbols_denied"), _symbols),
}
SETTING_NAMES = tuple(_SETTINGS)
#: What is said of a new follower if nothing else is given; of the rest the broker's settings have defaults.
_DEFAULTS = {"multiplier": "1"}


def check_settings(given: Mapping[str, str]) -> dict[str, str]:
    """Copy settings as they are stored.

    Raises
    ------
    Refused
        `unknown_setting`, `invalid_` + setting.
    """
    checked: dict[str, str] = {}
    for name, text in given.items():
        if name not in _SETTINGS:
            raise Refused(f"no such copy setting: {name[:40]!a}", code="unknown_setting")
        value = _SETTINGS[name](text)
        if value is None:
            raise Refused(f"{name} cannot be {text[:40]!a}", code=f"invalid_{name}")
        checked[name] = value
    return checked


def _investment(given: str | None) -> str | None:
    """An amount of USD as it is stored; `None` if none is given."""
    if given is None:
        return None
    amount = parse_decimal(given)
    if amount is None or not 0 < amount < _HIGHEST_USD:
        raise Refused(f"the investment must be a plain amount above 0, not {given[:40]!a}", code="invalid_investment")
    return decimal_text(amount)


def _identity(request: FollowRequest) -> dict[str, str]:
    """Account number and e-mail address, as far as they are given."""
    given = {ACCOUNT_NUMBER: (request.account_number, _NUMBER_CHARS), "email": (request.email, _EMAIL_CHARS)}
    for name, (text, limit) in given.items():
        if len(text) > limit or not text.isprintable():
            raise Refused(f"{name} cannot be {text[:40]!a}", code=f"invalid_{name}")
    return {name: text for name, (text, _) in given.items() if text}


def check_request(request: FollowRequest, master: str) -> Candidate:
    """Hold a request against the grammar.

    Raises
    ------
    Refused, InvalidId
        As `check_follower`; `invalid_investment`, `invalid_account_number`, `invalid_email`, `unknown_setting`,
        `invalid_` + setting.
    """
    follower = check_follower(request.follower, master)
    investment, identity = _investment(request.investment_usd), _identity(request)
    return Candidate(follower, investment, identity, check_settings(request.settings))


def new_configuration(master: Mapping[str, str], candidate: Candidate) -> dict[str, str]:
    """The configuration of a follower that has none; it does not copy yet.

    Raises
    ------
    Refused
        `account_missing`: there is no amount to begin with; `master_unusable`: what the master has would make the
        follower's account unknown.
    """
    investment = candidate.investment
    if investment is None:
        raise Refused("there is no such account, and no amount to begin with", code="account_missing")
    leverage, group = parse_decimal(master.get(LEVERAGE)), master.get(GROUP)
    try:
        is_usable = leverage is not None and leverage > 0 and (group is None or identifiers.check_group(group) == group)
    except InvalidId:
        is_usable = False
    if not is_usable:
        raise Refused("the master has no leverage, or no usable group, to take over", code="master_unusable")
    inherited = {name: master[name] for name in INHERITED if name in master}
    amounts = {WALLET_BALANCE: investment, "investment_amount": investment}
    state = {"status": "1", "is_active": "1", COPY_STATUS: CopyStatus.STOPPED.value}
    return {**inherited, **candidate.identity, **amounts, **state, **_DEFAULTS, **candidate.settings}


def account_of(follower: str) -> Account:
    """Of a checked id."""
    return Account(AccountType.FOLLOWER, follower)
