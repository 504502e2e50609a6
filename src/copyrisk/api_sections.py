"""The section `[api]` of the configuration: the HTTP API and the desk's page.

The master secret is read only where requests are answered or keys made: other processes need not be allowed to.
"""

from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

from copyrisk.errors import ConfigError
from copyrisk.sections import _flag, _setting, _text, _whole


def _networks(value: Any) -> str:
    try:
        for name in _text(value).split(","):
            ip_network(name.strip())
    except ValueError:
        raise ValueError("addresses or networks of proxies, separated by commas") from None
    return str(value)


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """Where it listens, who may come in, and the limits of what it does at once."""

    host: str = _setting("127.0.0.1", _text)
    port: int = _setting(8080, _whole(0, 65_535))
    tls_certificate: str | None = _setting(None, _text)
    tls_key: str | None = _setting(None, _text)
    trusted_proxies: str | None = _setting(None, _networks)
    connections_limit: int = _setting(2_000, _whole(1, 1_000_000))
    answer_timeout_ms: int = _setting(2_000, _whole(50, 60_000))
    waiting_limit: int = _setting(1_000, _whole(1, 100_000))
    body_bytes: int = _setting(65_536, _whole(1_024, 16 << 20))
    threads: int = _setting(8, _whole(1, 64))
    stream_period_ms: int = _setting(200, _whole(50, 60_000))
    streams_limit: int = _setting(200, _whole(1, 10_000))
    desk: bool = _setting(True, _flag)
    desk_refresh_ms: int = _setting(1_000, _whole(200, 4_000))
    desk_max_age_ms: int = _setting(5_000, _whole(500, 600_000))
    secret_file: str | None = _setting(None, _text)
    secret: str | None = field(default=None, repr=False, metadata={"check": _text, "environment_only": True})
    token_keys_file: str | None = _setting(None, _text)
    token_issuer: str | None = _setting(None, _text)
    token_audience: str = _setting("copyrisk", _text)
    clock_skew_ms: int = _setting(30_000, _whole(1_000, 300_000))
    rate_per_s: int = _setting(1_000, _whole(1, 1_000_000))
    rate_burst: int = _setting(2_000, _whole(1, 1_000_000))

    def check(self) -> None:
        """Hold the settings against each other.

        Raises
        ------
        ConfigError
        """
        if (self.tls_certificate is None) is not (self.tls_key is None):
            raise ConfigError("api.tls_certificate and api.tls_key go together")
        if self.desk_max_age_ms <= self.desk_refresh_ms:
            raise ConfigError(
                f"api.desk_max_age_ms ({self.desk_max_age_ms}) is not above desk_refresh_ms ({self.desk_refresh_ms})"
            )
