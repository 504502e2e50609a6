"""How a call is carried out: what is sent, what is made of what comes back, and when it is sent again. No I/O here.

A change is sent again only as it was, with the same idempotency key, so the server makes it once at most. Once
something was sent whose answer never came, only a word about the change itself settles it; without one it is unknown.
"""

import random
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from copyrisk.client.credentials import Credentials
from copyrisk.client.describing import Call
from copyrisk.client.failures import ApiRefused, BadAnswer, OutcomeUnknown, Unavailable
from copyrisk.client.shapes import parse_json, read
from copyrisk.signing import IDEMPOTENCY_HEADER

T = TypeVar("T")

_ACCEPTED, _AWAY = 202, (429, 503)
#: Refusals that are about the change, not about this sending of it. Neither are those of routes that are not there.
_ABOUT_THE_CHANGE, _NO_ROUTE = (404, 409, 422), ("not_found", "method_not_allowed")
#: Refusals by 503 that come before anything is begun.
_NOT_BEGUN = ("rate_limited", "too_busy", "server_stopping")
#: What stands before the API says by these that it cannot be reached, or has not answered it.
_BY_OTHERS, _GATEWAY = (429, 502, 503, 504), "bad_gateway"
_JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Retries:
    """When what did not succeed is sent again.

    Attributes
    ----------
    attempts : int
        How often it is sent at most; 1: never again.
    first_s, most_s : float
        Pauses: about the first, then doubled up to the other. A server that asks for a longer one is not asked again.
    within_s : float
        Nothing is sent again later than this: an order at the market's price is one of now.
    """

    attempts: int = 3
    first_s: float = 0.1
    most_s: float = 2.0
    within_s: float = 10.0

    def pause_s(self, number: int) -> float:
        """The pause after the attempt of a number, from 0; part of it is chance."""
        return min(self.most_s, self.first_s * 2.0 ** min(number, 30)) * random.uniform(0.5, 1.0)


NEVER_AGAIN = Retries(attempts=1)


class Send(NamedTuple):
    """A request to send; answered by `Received` or `Broken`."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


class Wait(NamedTuple):
    """A pause to make."""

    seconds: float


class Received(NamedTuple):
    """What came back; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Broken(NamedTuple):
    """Nothing came back; `is_sent`: the request may have arrived."""

    reason: str
    is_sent: bool


Step = Send | Wait
Came = Received | Broken | None
Doing = Generator[Step, Came, T]


def request_of(
    credentials: Credentials, method: str, target: str, body: bytes = b"", idempotency_key: str = ""
) -> Send:
    """A request, signed for now."""
    headers = dict(credentials.headers(method, target.encode(), body, idempotency_key))
    headers |= {"Accept": _JSON} | ({"Content-Type": _JSON} if body else {})
    return Send(method, target, headers, body)


def carry_out(call: Call[T], credentials: Credentials, retries: Retries) -> Doing[T]:
    """Steps to take until there is a result.

    Raises
    ------
    ApiRefused, OutcomeUnknown, Unavailable, BadAnswer
    """
    key = "" if call.change is None else call.change.idempotency_key
    began_s, number, asked = time.monotonic(), 0, 0
    is_perhaps_made = False
    while True:
        came = yield request_of(credentials, call.method, call.target, call.body, key)
        assert came is not None
        try:
            return _result(call, came)
        except ApiRefused as refusal:
            if is_perhaps_made and not _is_about_the_change(refusal):
                raise _unknown(call, str(refusal)) from None
            if not call.absent_code or refusal.code != call.absent_code:
                raise
            left_s = began_s + call.patience_s - time.monotonic()
            if left_s <= 0:
                return None  # type: ignore[return-value]  # what such a call returns may be None
            pause_s, asked, number = min(left_s, retries.pause_s(asked)), asked + 1, 0
        except (Unavailable, BadAnswer) as failure:
            is_perhaps_made |= call.change is not None and _may_be_made(call, came, failure)
            pause_s, number = retries.pause_s(number), number + 1
            wanted_s = failure.retry_after_s if isinstance(failure, Unavailable) else None
            is_over = number >= retries.attempts or (wanted_s or 0.0) > retries.most_s
            pause_s = max(pause_s, wanted_s or 0.0)
            if is_over or time.monotonic() + pause_s - began_s > max(retries.within_s, call.patience_s):
                raise (_unknown(call, str(failure)) if is_perhaps_made else failure) from None
        yield Wait(pause_s)


def _result(call: Call[T], came: Received | Broken) -> T:
    """What a call returns; raises as `carry_out`, for this one attempt."""
    if isinstance(came, Broken):
        raise Unavailable(came.reason)
    said = envelope(came)
    if came.status == _ACCEPTED and call.change is not None:
        order_id = said["data"].get("order_id") if isinstance(said["data"], dict) else None
        raise _unknown(call, str(said["message"]), order_id if isinstance(order_id, str) else None)
    return read(call.kind, said["data"])


def envelope(came: Received) -> Mapping[str, Any]:
    """What an answer says that is no refusal: `message` and `data`.

    Raises
    ------
    ApiRefused, Unavailable, BadAnswer
    """
    said = _parsed(came)
    if said.get("success") is True and 200 <= came.status < 300 and said.keys() >= {"message", "data"}:
        return said
    if said.get("success") is not False or came.status < 400 or not said.keys() >= {"error_code", "message"}:
        raise BadAnswer(f"HTTP {came.status}, and nothing that the API says")
    code, message = str(said["error_code"]), str(said["message"])
    if came.status in _AWAY:
        raise Unavailable(message, code=code, retry_after_s=_retry_after_s(came.headers))
    if came.status >= 500:
        raise BadAnswer(f"HTTP {came.status}, {code}: {message}")
    raise ApiRefused(message, code=code, status=came.status)


def _parsed(came: Received) -> Mapping[str, Any]:
    try:
        said = parse_json(came.body)
    except BadAnswer:
        said = None
    if isinstance(said, dict) and "success" in said:
        return said
    if came.status in _BY_OTHERS:
        wait_s = _retry_after_s(came.headers)
        raise Unavailable(f"HTTP {came.status} from before the API", code=_GATEWAY, retry_after_s=wait_s)
    raise BadAnswer(f"HTTP {came.status}, and nothing that the API says")


def _is_about_the_change(refusal: ApiRefused) -> bool:
    return refusal.status in _ABOUT_THE_CHANGE and refusal.code not in _NO_ROUTE


def _may_be_made(call: Call[T], came: Received | Broken, failure: Unavailable | BadAnswer) -> bool:
    """Whether the change may have been made, or be under way, after this."""
    if isinstance(came, Broken):
        return came.is_sent
    if isinstance(failure, BadAnswer) or call.change is None or failure.code == _GATEWAY:
        return True
    return not (call.change.is_one_step or failure.code in _NOT_BEGUN)


def _unknown(call: Call[T], reason: str, order_id: str | None = None) -> OutcomeUnknown:
    change = call.change
    assert change is not None
    return OutcomeUnknown(
        f"{call.method} {call.target}: {reason}; ask for {IDEMPOTENCY_HEADER} {change.idempotency_key}",
        account=change.account,
        order_id=order_id or change.order_id,
        idempotency_key=change.idempotency_key,
    )


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    said = headers.get("retry-after", "")
    return float(said) if said.isascii() and said.isdecimal() and len(said) <= 6 else None
