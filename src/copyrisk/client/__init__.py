"""A client of the HTTP API for other services: `Client`, and `AsyncClient` for asyncio. It needs `copyrisk[client]`."""

from copyrisk.client.awaiting import AsyncClient, AsyncStream
from copyrisk.client.blocking import Client, Stream
from copyrisk.client.credentials import Key, Token
from copyrisk.client.describing import Call
from copyrisk.client.failures import ApiRefused, BadAnswer, OutcomeUnknown, Unavailable
from copyrisk.client.trying import NEVER_AGAIN, Retries

__all__ = [
    "NEVER_AGAIN",
    "ApiRefused",
    "AsyncClient",
    "AsyncStream",
    "BadAnswer",
    "Call",
    "Client",
    "Key",
    "OutcomeUnknown",
    "Retries",
    "Stream",
    "Token",
    "Unavailable",
]
