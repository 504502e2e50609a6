"""What the OpenAPI document says of accounts and their orders."""

from typing import Any, Literal

from copyrisk.api.documents import PortfolioState, Shape


class Figures(Shape):
    """USD, the margin level in percent; null is not known, and the level of an account without margin."""

    equity: float | None
    balance: float | None
    free_margin: float | None
    used_margin: float | None
    used_margin_executed: float | None
    used_margin_all: float | None
    margin_level: float | None
    open_pnl: float | None
    total_pl: float | None


class Portfolio(Figures):
    """An account's figures now.

    `state`: `known`; `unknown`: the account cannot be valued, `degraded_fields` says why; `absent`: it was not valued
    yet; `stale`: nobody values accounts now; `unavailable`: nobody can tell whether. Unless it is known all figures are
    null, and `last_known` has those of `valued_ts`. `age_ms`: since the last tick at which the last known figures were
    true. Times in ms since 1970.
    """

    user_type: str
    user_id: str
    state: PortfolioState
    calc_status: str | None
    degraded_fields: list[str]
    ts: int | None
    valued_ts: int | None
    age_ms: int | None
    last_known: Figures | None


class OrderPage(Shape):
    """Orders of an account by id, as they are stored: decimal texts.

    Of one that cannot be read there is only its `order_id`, and `unreadable`. `next`: the `after` of the next page.
    """

    user_type: str
    user_id: str
    count: int
    orders: list[dict[str, str | bool]]
    next: str | None


class OneOrder(Shape):
    """An order, as it is or as it ended: decimal texts."""

    order_id: str
    is_open: bool
    order: dict[str, str]


class KeyAnswer(Shape):
    """What was answered under an idempotency key.

    `order`: of an order's change; `data`: of a change of copying.
    """

    outcome: Literal["done", "refused"]
    type: str
    idempotency_key: str
    order_id: str | None
    code: str
    message: str
    version: int | None
    event_id: str
    order: dict[str, str] | None
    data: dict[str, Any] | None
