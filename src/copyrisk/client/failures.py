"""How a call can fail. What is not known to have failed is never told as if it had."""

from copyrisk.errors import CopyriskError


class ApiRefused(CopyriskError):
    """The API refused; nothing was changed.

    Attributes
    ----------
    code : str
        Stable.
    message : str
    status : int
        Of HTTP.
    """

    code = "refused"

    def __init__(self, message: str, *, code: str, status: int) -> None:
        super().__init__(message, code=code)
        self.message, self.status = message, status

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class OutcomeUnknown(CopyriskError):
    """A change may have been made, or may still be: `Client.outcome` finds out. It has not been refused.

    Attributes
    ----------
    account : str
        `T:U`.
    order_id : str or None
        The order's, as far as it is known.
    idempotency_key : str
        To ask for, and for saying the same again.
    """

    code = "outcome_unknown"

    def __init__(self, message: str, *, account: str, order_id: str | None, idempotency_key: str) -> None:
        super().__init__(message)
        self.account, self.order_id, self.idempotency_key = account, order_id, idempotency_key


class Unavailable(CopyriskError):
    """No answer could be had; of a change: it was certainly not made.

    Attributes
    ----------
    code : str
        Of the API's last answer; `unreachable`: there was none.
    retry_after_s : float or None
        How long to wait at least, if that was said.
    """

    code = "unreachable"

    def __init__(self, message: str, *, code: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.code}: {super().__str__()}"


class BadAnswer(CopyriskError):
    """What answered a question is nothing that the API says; of changes that is an `OutcomeUnknown`."""

    code = "bad_answer"
