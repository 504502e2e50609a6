"""What autocutoff did in one tick, as plain numbers: for log lines and metrics."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class CutoffReport:
    """One tick of autocutoff; what is not known is `None`, never 0.

    Attributes
    ----------
    warned, breached, recovered : int
        Accounts whose warning episode began, that became critical, whose episode ended.
    liquidating : int
        Accounts that are being closed now.
    closes, cancels, refused : int
        Of this tick: closes and cancels that were stored or sent to the provider; those that were refused.
    delayed_ticks : list of int
        Of each breach whose first close was stored in this tick: how many ticks after the breach; 0 for the same one.
    held : int
        Accounts that the brake holds back.
    protected : int
        Flat accounts whose negative balance was put back to 0.
    cascades_running : int
    cascades_finished : int
        Of this tick.
    is_leader : bool
        Whether this process holds the lease.
    took_ms : float
        All of it, from the ladder to the last reply.
    audit_lag : int or None
        Entries of the trail that the local file does not have; `None` without a file.
    failure : str
        Code of what kept it from acting; then all else says nothing.
    """

    warned: int = 0
    breached: int = 0
    recovered: int = 0
    liquidating: int = 0
    closes: int = 0
    cancels: int = 0
    refused: int = 0
    delayed_ticks: list[int] = field(default_factory=list)
    held: int = 0
    braking: bool = False
    protected: int = 0
    cascades_running: int = 0
    cascades_finished: int = 0
    is_leader: bool = False
    took_ms: float = 0.0
    audit_lag: int | None = None
    failure: str = ""
