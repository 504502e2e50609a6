"""How often somebody may do something: token buckets, each kept as one number."""

import ipaddress
import math

_NETWORK_BITS = 64


class Buckets:
    """A bucket of `burst` tokens for each name, filled up with `per_s` a second.

    It is kept as the moment at which it will be full again. A full bucket need not be kept: of more than `limit`
    names those are forgotten that were not heard of for longest.
    """

    def __init__(self, per_s: float, burst: int, limit: int = 10_000) -> None:
        self._token_s = 1.0 / per_s
        self._room_s = (burst - 1) * self._token_s
        self._limit = limit
        self._full_s: dict[str, float] = {}

    def wait_s(self, name: str, now_s: float) -> float:
        """How long until there is a token; 0: there is one. Takes none."""
        full_s = self._full_s.get(name)
        return 0.0 if full_s is None else max(full_s - self._room_s - now_s, 0.0)

    def take(self, name: str, now_s: float) -> float:
        """Take a token and return 0; or how long until there is one."""
        full_s = self._full_s.pop(name, now_s)
        wait_s = max(full_s - self._room_s - now_s, 0.0)
        self._full_s[name] = full_s if wait_s else max(full_s, now_s) + self._token_s
        if len(self._full_s) > self._limit:
            del self._full_s[next(iter(self._full_s))]
        return wait_s

    def give_back(self, name: str) -> None:
        """Put back a token that was taken."""
        if name in self._full_s:
            self._full_s[name] -= self._token_s

    def __len__(self) -> int:
        return len(self._full_s)


def retry_after(wait_s: float) -> str:
    """For the header `Retry-After`: whole seconds, at least one."""
    return str(max(math.ceil(wait_s), 1))


def peer_name(host: str | None) -> str:
    """Who is at the other end, as an address tells: of IPv6 the network, for a host has all of its addresses."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return "-"  # a proxy may say anything
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((int(address), _NETWORK_BITS), strict=False))
    return str(address)
