"""What the OpenAPI document says of decisions, cascades, the audit trail and accounts' histories."""

from typing import Any

from copyrisk.api.documents import Shape


class DecisionPage(Shape):
    """What was decided about the copies of a master's order.

    `order`: all that is known of it; for callers who may not see the master, what its followers may know. `differs`:
    by follower, what does not come to the same when it is worked out again.
    """

    order: dict[str, Any]
    followers: list[dict[str, Any]]
    differs: dict[str, str]
    next: str | None


class CascadeList(Shape):
    """Those that are running, and the last 50 that have ended, of masters that the caller may see.

    One that cannot be read has its id, and a code as its state.
    """

    cascades: list[dict[str, Any]]


class CascadePage(Shape):
    """A cascade; its followers by id, those that the caller may see. `next`: the `after` of the next page."""

    cascade: dict[str, Any]
    followers: list[dict[str, Any]]
    next: str | None


class TrailEntry(Shape):
    """An entry of the audit trail; `said` is null if it says more than one answer holds."""

    seq: int
    ts_ms: int
    kind: str
    account: str
    cause: str
    reason: str
    said: dict[str, Any] | None
    writer: str
    hash: str


class TrailPage(Shape):
    """Entries, newest first.

    A call looks at a bounded number of entries, and may find none: `next` is the `before` of the next call, null at
    the end. `unreadable`: how many were no entries.
    """

    entries: list[TrailEntry]
    next: int | None
    looked_at: int
    unreadable: int


class HistoryPage(Shape):
    """What happened to an account, newest first; `next`: the `before` of the next page."""

    user_type: str
    user_id: str
    entries: list[dict[str, Any]]
    next: str | None
