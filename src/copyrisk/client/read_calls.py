"""What can be asked of accounts, orders, decisions, cascades, the audit trail and the desk, as calls."""

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from copyrisk import identifiers
from copyrisk.client.describing import Call, Number, account_of, asking, body_of, number_text, path_of
from copyrisk.client.models import (
    CascadeList,
    CascadePage,
    DecisionPage,
    HistoryPage,
    KeyAnswer,
    OneOrder,
    OrderPage,
    Portfolio,
    TrailPage,
)
from copyrisk.client.risk import Ladder, RiskSummary, SymbolLadder, WhatIf
from copyrisk.identifiers import Account

#: What the API says of a key under which nothing was answered.
_NO_ANSWER = "unknown_answer"


def _of(account: str | Account) -> dict[str, object]:
    whose = account_of(account)
    return {"user_type": whose.type.value, "user_id": whose.id}


def portfolio(account: str | Account) -> Call[Portfolio]:
    """An account's figures as the daemon last wrote them."""
    whose = account_of(account)
    return asking(Portfolio, path_of("portfolios", whose.type.value, whose.id))


def orders(account: str | Account, *, after: str | None = None, limit: int | None = None) -> Call[OrderPage]:
    """The orders of an account that have not ended, by id."""
    return asking(OrderPage, path_of("orders"), _of(account) | {"after": after, "limit": limit})


def order(account: str | Account, order_id: str) -> Call[OneOrder]:
    """An order of an account, as it is or as it ended."""
    return asking(OneOrder, path_of("orders", identifiers.check_order_id(order_id)), _of(account))


def outcome(account: str | Account, idempotency_key: str, *, wait_s: float = 0.0) -> Call[KeyAnswer | None]:
    """What came of a change; `None`: nothing was answered under its key within `wait_s`, and it is still unknown.

    `None` is no refusal: the change may wait for a worker. To be sure of it, make the same change again with
    the same key: it is made once at most.
    """
    path = path_of("orders", "answers", identifiers.check_idempotency_key(idempotency_key))
    call = replace(asking(KeyAnswer, path, _of(account)), absent_code=_NO_ANSWER, patience_s=wait_s)
    return cast("Call[KeyAnswer | None]", call)


def history(account: str | Account, *, before: str | None = None, limit: int | None = None) -> Call[HistoryPage]:
    """What happened to an account: each change of it and each refusal, newest first."""
    whose = account_of(account)
    path = path_of("accounts", whose.type.value, whose.id, "history")
    return asking(HistoryPage, path, {"before": before, "limit": limit})


def decision(
    order_id: str, *, follower: str | None = None, after: str | None = None, limit: int | None = None
) -> Call[DecisionPage]:
    """Why each follower got what it got of a master's order; given a copy, why that one is what it is."""
    path = path_of("decisions", identifiers.check_order_id(order_id))
    return asking(DecisionPage, path, {"follower": follower, "after": after, "limit": limit})


def cascades() -> Call[CascadeList]:
    """Cascades that are running, and the last ones that have ended."""
    return asking(CascadeList, path_of("cascades"))


def cascade(cascade_id: str, *, after: str | None = None, limit: int | None = None) -> Call[CascadePage]:
    """A cascade, follower by follower."""
    path = path_of("cascades", identifiers.check_cascade_id(cascade_id))
    return asking(CascadePage, path, {"after": after, "limit": limit})


def audit(
    *,
    account: str | Account | None = None,
    kind: str | None = None,
    from_ms: int | None = None,
    to_ms: int | None = None,
    before: int | None = None,
    limit: int | None = None,
) -> Call[TrailPage]:
    """Entries of the house's audit trail, newest first."""
    whose = None if account is None else account_of(account)
    said = {"account": whose, "kind": kind, "from_ms": from_ms, "to_ms": to_ms, "before": before, "limit": limit}
    return asking(TrailPage, path_of("audit"), said)


# ---- the desk


def risk_summary() -> Call[RiskSummary]:
    """All accounts at a glance."""
    return asking(RiskSummary, path_of("risk", "summary"))


def ladder() -> Call[Ladder]:
    """For each symbol, how far it must move until the first account reaches a level."""
    return asking(Ladder, path_of("risk", "ladder"))


def symbol_ladder(symbol: str) -> Call[SymbolLadder]:
    """How many accounts and lots reach warning or critical at which price of a symbol."""
    return asking(SymbolLadder, path_of("risk", "ladder", identifiers.check_symbol(symbol)))


def what_if(moves: Mapping[str, Number]) -> Call[WhatIf]:
    """What would come of moves of quotes, by symbol in percent: who is warned, who is liquidated; nothing is done."""
    said = {symbol: number_text(percent) for symbol, percent in moves.items()}
    return Call("POST", path_of("risk", "what-if"), WhatIf, body_of({"moves": said}))
