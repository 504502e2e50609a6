"""What is to be closed of an account, step by step, and what came of it. Pure: no store, no clock."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from copyrisk.commands import Cut
from copyrisk.errors import CopyriskError
from copyrisk.identifiers import Account
from copyrisk.situation import Outcome
from copyrisk.stopping import stop_out_command
from copyrisk.store.changes import Cause
from copyrisk.verdicts import Job

STOP_OUT = "stop_out"


@dataclass(frozen=True, slots=True)
class Step:
    """One close (of so many lots; `None`: all) or cancel."""

    order_row: int
    order_id: str
    lots: Decimal | None
    is_cancel: bool

    def words(self) -> dict[str, object]:
        """What it says in the trail."""
        lots = None if self.lots is None else str(self.lots)
        return {"order_id": self.order_id, "lots": lots, "is_cancel": self.is_cancel}


@dataclass(eq=False, slots=True)
class Plan:
    """What is to be done about one account now, and what came of it.

    Attributes
    ----------
    event_id : str
        What it is done for.
    reason : str
        What its orders say of it afterwards.
    only_critical : bool
        Whether only while the account is critical.
    """

    row: int
    account: Account
    event_id: str
    steps: Sequence[Step]
    reason: str = STOP_OUT
    only_critical: bool = True
    jobs: list[Job] = field(default_factory=list)

    def job(self, step: Step, *, only_critical: bool) -> Job:
        """A step as a job for the dispatcher."""
        cut = Cut(self.reason, only_critical=only_critical)
        command = stop_out_command(self.account, step.order_id, cut, cause=self.event_id, lots=step.lots)
        return Job(Cause(self.event_id, command.type.value), self.account, step.order_id, command)

    @property
    def changes(self) -> list[Outcome]:
        """What was changed."""
        return [job.verdict for job in self.jobs if isinstance(job.verdict, Outcome)]

    @property
    def refused(self) -> int:
        """How many steps could not be taken."""
        return sum(isinstance(job.verdict, CopyriskError) for job in self.jobs)

    @property
    def has_taken_any(self) -> bool:
        """Whether any step changed the account, or had done so before."""
        return any(is_under_way(job) for job in self.jobs)

    @property
    def was_not_critical(self) -> bool:
        """Whether the account turned out to be better off than it was planned for."""
        return any(is_not_critical(job) for job in self.jobs)

    def results(self) -> list[dict[str, str]]:
        """What came of each step, as words: lots, price and result in USD where something was closed here."""
        return [{"order_id": job.order_id, "result": _result(job), **_booked(job)} for job in self.jobs]


def is_under_way(job: Job) -> bool:
    """Whether an order was closed or taken back by a job, or is about to be."""
    return isinstance(job.verdict, Outcome) or _code(job) == "in_flight"


def is_not_critical(job: Job) -> bool:
    """Whether an account turned out not to be critical."""
    return _code(job) == "not_critical"


def _code(job: Job) -> str:
    return getattr(job.verdict, "code", "")


def _booked(job: Job) -> dict[str, str]:
    booking = job.verdict.booking if isinstance(job.verdict, Outcome) else None
    if booking is None:
        return {}
    return {"lots": f"{booking.lots:f}", "price": f"{booking.price:f}", "result_usd": f"{booking.amount_usd:f}"}


def _result(job: Job) -> str:
    return job.verdict.event.value if isinstance(job.verdict, Outcome) else _code(job) or "unknown"
