"""Which way an account's orders go: filled locally, or sent to a liquidity provider."""

from copyrisk.errors import UnsupportedFlow
from copyrisk.terms import AccountType, Flow, SendingOrders

_BY_TYPE: dict[AccountType, dict[str, Flow]] = {
    AccountType.LIVE: {SendingOrders.ROCK: Flow.LOCAL, SendingOrders.BARCLAYS: Flow.PROVIDER},
    AccountType.MASTER: {SendingOrders.ROCK: Flow.LOCAL},
    AccountType.FOLLOWER: {SendingOrders.ROCK: Flow.LOCAL},
    AccountType.DEMO: {},
}
#: Where any other value, or none, goes; a live account has no such flow.
_OTHERWISE = {
    AccountType.DEMO: Flow.LOCAL,
    AccountType.MASTER: Flow.PROVIDER,
    AccountType.FOLLOWER: Flow.PROVIDER,
}


def select_flow(user_type: AccountType | str, sending_orders: str | None) -> Flow:
    """Resolve the flow of an account (contract section 3).

    Parameters
    ----------
    user_type : AccountType or str
    sending_orders : str or None
        The account's setting; trimmed and lower-cased here.

    Raises
    ------
    UnsupportedFlow
        Unknown account type, or a live account whose setting names no flow.
    """
    setting = (sending_orders or "").strip().lower()
    try:
        checked = AccountType(user_type)
    except ValueError:
        raise UnsupportedFlow(f"unknown account type: {str(user_type)[:80]!a}") from None
    flow = _BY_TYPE[checked].get(setting) or _OTHERWISE.get(checked)
    if flow is None:
        raise UnsupportedFlow(f"a {checked.value} account cannot send orders to {setting[:80]!a}")
    return flow
