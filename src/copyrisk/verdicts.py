"""Jobs and their verdicts: a wave of commands and reports, held against what was read of their accounts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from copyrisk.commands import INTERNAL, PLACING, Command, CommandType, Trigger
from copyrisk.decimals import parse_decimal
from copyrisk.errors import CopyriskError, Refused, TryLater
from copyrisk.execution import decide, judge_margin
from copyrisk.fills import apply_report
from copyrisk.identifiers import Account
from copyrisk.provider_reports import Report
from copyrisk.pursuit import follow_master
from copyrisk.records import Order, read_order
from copyrisk.situation import Nothing, Outcome, Situation
from copyrisk.stopping import stop_out
from copyrisk.store.appraisal import Appraiser
from copyrisk.store.changes import Cause, parse_answer
from copyrisk.store.functions import AccountRead
from copyrisk.store.kill_switch import KillSwitch, Opening

_ACTIVE = ("1", "true", "active")


@dataclass(frozen=True, slots=True)
class Repeated:
    """A command that was answered before, and the event that answered it."""

    event: dict[str, str]


class Fenced(TryLater):
    """An account that was changed under a later right than that of who asks.

    Attributes
    ----------
    token : str
        Of that right.
    """

    def __init__(self, token: str) -> None:
        super().__init__(f"the account was changed under the right {token}", code="fenced")
        self.token = token


Verdict: TypeAlias = Outcome | Nothing | Repeated | CopyriskError


@dataclass(eq=False, slots=True)
class Job:
    """A command or report on its way.

    Attributes
    ----------
    read : AccountRead or None
        What was read of its account, this time.
    verdict : Verdict or None
        What is to be done with it; a `CopyriskError` that is no `Refused` and no `Break` leaves it to be tried later.
    """

    cause: Cause
    account: Account
    order_id: str
    work: Command | Report
    read: AccountRead | None = None
    verdict: Verdict | None = None
    tries: int = 0

    @property
    def is_command(self) -> bool:
        """Whether somebody waits for an answer."""
        return isinstance(self.work, Command)

    @property
    def is_internal(self) -> bool:
        """Whether it is a step of ours; nobody waits for an answer, and what cannot be done now is asked again."""
        return isinstance(self.work, Command) and self.work.type in INTERNAL

    @property
    def rests_on_level(self) -> bool:
        """Whether it is done only if the account is critical."""
        return isinstance(self.work, Command) and self.work.cut is not None and self.work.cut.only_critical

    @property
    def places_order(self) -> bool:
        """Whether it makes a new order."""
        return isinstance(self.work, Command) and self.work.type in PLACING

    @property
    def adds_lots(self) -> bool:
        """Whether it makes a new order, or may bring one nearer to its filling: what a kill forbids."""
        is_filling = isinstance(self.work, Command) and (
            self.work.type is CommandType.MODIFY or self.work.trigger is Trigger.PENDING
        )
        return self.places_order or is_filling


def repeated(job: Job, stored: str) -> Repeated | Refused:
    """The verdict on a command whose key was answered before: the same command is answered the same."""
    try:
        body, event = parse_answer(stored)
    except Refused as unreadable:
        return unreadable
    if body == job.cause.body:
        return Repeated(event)
    return Refused("another command had this idempotency key or order id", code="idempotency_conflict")


def judge_wave(jobs: Sequence[Job], appraiser: Appraiser, switch: KillSwitch) -> None:
    """Give each job that was read and has no verdict yet its verdict; `switch` as of the last reading.

    Raises
    ------
    StoreError, StoreUnavailable
        The markets cannot be read; no job may be carried out.
    """
    orders: dict[Job, Order | None] = {}
    for job in jobs:
        if job.read is None or job.verdict is not None:
            continue
        if job.read.answer:
            job.verdict = repeated(job, job.read.answer)
            continue
        try:
            orders[job] = read_order(job.account, job.order_id, job.read.order, job.read.record or None)
        except Refused as refusal:
            job.verdict = _of_refusal(job, refusal)
    if orders:
        _judge(orders, appraiser, switch)


def _judge(orders: dict[Job, Order | None], appraiser: Appraiser, switch: KillSwitch) -> None:
    reads = [job.read for job in orders if job.read is not None]
    appraiser.lay_out(reads, [_symbol(job, order) for job, order in orders.items()])
    candidates = []
    critical = appraiser.are_critical([i for i, job in enumerate(orders) if job.rests_on_level])
    halts = _halts(orders, switch)
    for i, (job, order) in enumerate(orders.items()):
        situation = _situation(i, reads[i], order, appraiser, is_critical=critical.get(i), halt=halts.get(job))
        try:
            outcome = _outcome(job, situation)
        except CopyriskError as refusal:
            job.verdict = _of_refusal(job, refusal)
            continue
        job.verdict = outcome
        if isinstance(outcome, Outcome) and outcome.needs_margin:
            candidates.append((i, job, outcome))
    margins = appraiser.judge([(i, outcome.order) for i, _, outcome in candidates])
    for (_, job, outcome), margin in zip(candidates, margins, strict=True):
        try:
            if margin.code not in ("ok", "insufficient_margin"):
                raise Refused(margin.message, code=margin.code)
            job.verdict = judge_margin(outcome.with_margin(margin.margin_usd), is_covered=margin.code == "ok")
        except CopyriskError as refusal:
            job.verdict = _of_refusal(job, refusal)


def _halts(orders: dict[Job, Order | None], switch: KillSwitch) -> dict[Job, Refused | None]:
    """What kills forbid of what the jobs ask."""
    openings = {}
    for job, order in orders.items():
        if isinstance(job.work, Command) and job.adds_lots:
            copied = order.master_order_id if order else job.work.master_order_id
            openings[job] = Opening(job.account, _symbol(job, order), copied)
    return dict(zip(openings, switch.refusals(list(openings.values())), strict=True))


def _outcome(job: Job, situation: Situation) -> Outcome | Nothing:
    work = job.work
    if isinstance(work, Report):
        return apply_report(work, situation)
    if work.type is CommandType.STOP_OUT:
        return stop_out(work, situation)
    return follow_master(work, situation) if work.type is CommandType.FOLLOW else decide(work, situation)


def _of_refusal(job: Job, refusal: CopyriskError) -> CopyriskError:
    """A command may be refused; a report never is: it is applied, late, or a break, now or later."""
    if job.is_internal:
        return refusal
    if job.is_command and not isinstance(refusal, Refused):  # not possible now, or in no flow: the client is told
        return Refused(str(refusal), code=refusal.code)
    if not job.is_command and isinstance(refusal, Refused):
        return TryLater(str(refusal), code=refusal.code)
    return refusal


def _symbol(job: Job, order: Order | None) -> str:
    if isinstance(job.work, Command) and job.places_order:
        return job.work.symbol
    return order.symbol if order else ""


def _situation(
    i: int,
    read: AccountRead,
    order: Order | None,
    appraiser: Appraiser,
    *,
    is_critical: bool | None,
    halt: Refused | None,
) -> Situation:
    said = read.config
    return Situation(
        account=read.account,
        now_ms=appraiser.now_ms,
        balance=parse_decimal(said.get("wallet_balance")),
        sending_orders=said.get("sending_orders"),
        is_active=all(said.get(name, "1").strip().lower() in _ACTIVE for name in ("is_active", "status")),
        order=order,
        market=appraiser.market_of(i),
        order_count=len(read.order_ids),
        is_critical=is_critical,
        halt=halt,
    )
