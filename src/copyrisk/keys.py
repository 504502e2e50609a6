"""Every Redis key and channel; the only place in the code that spells one.

Ids are checked (`identifiers.py`) before any key is built of them.
Braces in the keys are literal: they are the Redis Cluster hash tag.
"""

import re
from typing import NamedTuple

from copyrisk.errors import InvalidId
from copyrisk.identifiers import ID_PATTERN, SHOWN_CHARS, Account
from copyrisk.terms import AccountType

MARKET_PRICE_UPDATES = "market_price_updates"
PORTFOLIO_UPDATES = "portfolio_updates"
PORTFOLIO_FORCE_RECALC = "portfolio_force_recalc"

STANDARD_GROUP = "Standard"

#: Hash: what the daemon's last tick saw; a portfolio that did not change is as of this `ts`.
TICK = "copyrisk:tick"

#: Streams: what is asked of the workers, and what they answer and announce.
COMMANDS = "copyrisk:commands"
EVENTS = "copyrisk:events"
#: Streams: what the liquidity provider is asked, and what it reports.
REQUESTS = "copyrisk:requests"
REPORTS = "copyrisk:reports"
#: Stream: changed orders and booked amounts on their way to the database.
HISTORY = "copyrisk:history"
#: Stream: changes of masters' orders that their copies must follow.
REPLICATIONS = "copyrisk:replications"
#: Hash: copies that could not follow their master's order yet, by copy.
WAITING_COPIES = "copyrisk:waiting_copies"
#: Stream: reports that contradict our books; nothing was done about them.
BREAKS = "copyrisk:breaks"
#: Stream: dead letters of commands and reports that were put back.
REPLAYED = "copyrisk:replayed"
#: Stream: entries that failed again and again, with the reason.
DEAD_LETTERS = "copyrisk:dead_letters"
#: Stream: the house's audit trail, an entry a step, each chained to the one before.
AUDIT_TRAIL = "copyrisk:{audit}:trail"
#: Hash: number and hash of the trail's last entry, and the number of the first one that it keeps.
AUDIT_HEAD = "copyrisk:{audit}:head"
#: Hash: warning episodes of accounts, by `T:U`. Stream: warnings on their way to clients. In the slot of the lease.
EPISODES = "copyrisk:{cutoff}:episodes"
NOTICES = "copyrisk:{cutoff}:notices"
#: Hash: cascades that are running, by master. Sorted set: those that have ended, by when. In the same slot.
CASCADES = "copyrisk:{cutoff}:cascades"
CASCADES_DONE = "copyrisk:{cutoff}:cascades_done"
#: Set: `T:U` whose negative balance is being booked away, until everybody has heard of it. In the same slot.
PROTECTING = "copyrisk:{cutoff}:protecting"
#: Hash: requests without a final report, by request id.
OUTSTANDING = "copyrisk:outstanding"
#: Hash: what is halted, by scope; in a slot of its own, whatever account it is about.
KILLS = "copyrisk:kills"
#: Hash: the keys that services sign requests with, by key id; no secrets.
API_KEYS = "copyrisk:api:keys"

_TAG = f"((?:{'|'.join(AccountType)}):{ID_PATTERN})".encode()


class Shape(NamedTuple):
    """What stands before and after `T:U`, or an id, in the keys of accounts."""

    before: bytes
    after: bytes

    def of(self, account: "Account | str") -> str:
        """The key of this account."""
        return f"{self.before.decode()}{account}{self.after.decode()}"

    def inside(self, key: bytes) -> bytes:
        """What stands between the two in a key that `pattern` matches."""
        return key[len(self.before) : len(key) - len(self.after)]

    @property
    def pattern(self) -> str:
        """For `SCAN`."""
        return f"{self.before.decode()}*{self.after.decode()}"


CONFIG = Shape(b"user:{", b"}:config")
ORDERS_INDEX = Shape(b"user_orders_index:{", b"}")
HOLDING = Shape(b"user_holdings:{", b"}:")  # the order's id follows
PORTFOLIO = Shape(b"user_portfolio:{", b"}")
ACTIVE_FOLLOWERS = Shape(b"copy_master_followers:", b":active")  # a master's id
PROVIDER_OF = Shape(b"copy_follower_master:", b":provider_id")  # a follower's id
_ACCOUNT_KEY = re.compile(
    b"|".join(re.escape(before) + _TAG + re.escape(after) for before, after in (CONFIG, ORDERS_INDEX))
    + b"|"
    + re.escape(HOLDING.before)
    + _TAG
    + re.escape(HOLDING.after)
    + b".*",
    re.DOTALL,
)
#: What the project keeps of an account, in its slot; the name of the thing follows.
OWN = Shape(b"copyrisk:{", b"}:")
LEDGER = Shape(OWN.before, OWN.after + b"ledger")
TRIGGERS_PREFIX, MARKET_PREFIX = "order_triggers:", "market:"
#: What the daemon must hear of when it changes: the keys its figures come from, and who copies whom.
TRACKED_PREFIXES = ("user_holdings:", "user_orders_index:", "user:", "groups:", "copy_")


def tag_of_key(key: bytes) -> bytes | None:
    """`T:U` of a key that is shaped like an account's configuration, index or order; `None` for other keys.

    Raises
    ------
    InvalidId
        It has the shape, but what stands for `T:U` is no account.
    """
    found = _ACCOUNT_KEY.fullmatch(key)
    if found is not None:
        return found[found.lastindex or 0]
    for shape in (CONFIG, ORDERS_INDEX, HOLDING):
        if key.startswith(shape.before) and shape.after in key:
            shown = key[len(shape.before) :][:SHOWN_CHARS]
            raise InvalidId(f"not the key of an account (type:id): {shown!r}", code="invalid_account")
    return None


def config(account: Account) -> str:
    """Hash: balance, leverage, group, levels and follower settings."""
    return CONFIG.of(account)


def holding(account: Account, order_id: str) -> str:
    """Hash: one order of the account."""
    return HOLDING.of(account) + order_id


def orders_index(account: Account) -> str:
    """Set: the ids of the account's orders."""
    return ORDERS_INDEX.of(account)


def portfolio(account: Account) -> str:
    """Hash: the account's figures, written each tick they change."""
    return PORTFOLIO.of(account)


def symbol_holders(symbol: str, user_type: AccountType) -> str:
    """Set: `T:U` of accounts with an order on the symbol."""
    return f"symbol_holders:{symbol}:{user_type.value}"


def market(symbol: str) -> str:
    """Hash: the symbol's quote."""
    return f"market:{symbol}"


def group(name: str, symbol: str) -> str:
    """Hash: contract terms of a symbol for a group of accounts."""
    return f"groups:{{{name}}}:{symbol}"


def order_data(order_id: str) -> str:
    """Hash: the canonical order, shared by all account types."""
    return f"order_data:{order_id}"


def order_triggers(order_id: str) -> str:
    """Hash: stop loss and take profit of an order."""
    return f"order_triggers:{order_id}"


def active_followers(master_id: str) -> str:
    """Set: ids of the followers that copy the master now."""
    return ACTIVE_FOLLOWERS.of(master_id)


def provider_of(follower_id: str) -> str:
    """String: the master of a follower."""
    return PROVIDER_OF.of(follower_id)


def work(kind: str) -> str:
    """Stream: commands of one kind, put there by workers that do not do that kind themselves."""
    return f"copyrisk:work:{kind}"


def is_own_stream(name: str) -> bool:
    """Whether entries may be put into a stream of this name: all that this package reads itself."""
    return name in (COMMANDS, REPORTS, REPLAYED, REQUESTS, HISTORY, NOTICES) or name.startswith(work(""))


def ledger(account: Account) -> str:
    """Hash: the account's `version`, which every change raises, and `reserved_usd`."""
    return LEDGER.of(account)


def order_record(account: Account, order_id: str) -> str:
    """Hash: what the project must know of an order beyond the contract's fields; outlives the order."""
    return f"{OWN.of(account)}order:{order_id}"


def answer(account: Account, idempotency_key: str) -> str:
    """String: what a command was answered, under its idempotency key."""
    return f"{OWN.of(account)}answer:{idempotency_key}"


def audit(account: Account) -> str:
    """Stream: every change of the account and every refusal, appended only."""
    return OWN.of(account) + "audit"


def outbox(account: Account) -> str:
    """Stream: changes whose effects in other slots are still to be brought about."""
    return OWN.of(account) + "outbox"


def holder_versions(symbol: str, user_type: AccountType) -> str:
    """Hash: by `T:U`, the account version that `symbol_holders` reflects; in the slot of that set."""
    return f"copyrisk:{{{symbol_holders(symbol, user_type)}}}"


def copies(master_order_id: str) -> str:
    """Hash: what was decided about the copies of a master's order, and what came of it."""
    return f"copyrisk:copies:{master_order_id}"


def cascade(cascade_id: str) -> str:
    """Hash: a cascade, its followers and where each stands."""
    return f"copyrisk:{{cutoff}}:cascade:{cascade_id}"


def audit_aside(name: str) -> str:
    """Stream: entries that did not belong to the audit trail's chain, kept beside it."""
    return f"copyrisk:{{audit}}:aside:{name}"


def lease(role: str) -> str:
    """Hash: which process of a role may act, until when, and its fencing token."""
    return f"copyrisk:{{{role}}}:lease"


def notice(notice_key: str) -> str:
    """Hash: how far a warning has got on each way to its client."""
    return f"copyrisk:{{cutoff}}:notice:{notice_key}"


def replication_counts(master_id: str) -> str:
    """Hash: how replication of a master went; of all masters under the empty id."""
    return f"copyrisk:replication:{master_id}"


def copying(follower: Account) -> str:
    """Hash: what the limits of a follower are measured against."""
    return OWN.of(follower) + "copying"


def remainders(follower: Account) -> str:
    """Hash: by copy, what rounding took from it."""
    return OWN.of(follower) + "remainders"


def finished_request(request_id: str) -> str:
    """String: the final report of a request to the provider, kept for a while."""
    return f"copyrisk:finished:{request_id}"


def api_nonce(key_id: str, nonce: str) -> str:
    """String: a nonce that was used with a key, as long as its request could be sent again; in the commands' slot."""
    return f"copyrisk:api:nonce:{{{COMMANDS}}}:{key_id}:{nonce}"
