"""Who may look at the demo over HTTP: a secret and a key pair that live as long as it does, and a link with a token."""

import importlib.util
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_NEEDED = ("fastapi", "uvicorn", "jwt", "cryptography", "plotly")
_TOKEN_S = 12 * 3_600.0
_NAME = "demo-desk"


@dataclass(frozen=True, slots=True)
class DeskAccess:
    """What the API's process is given, and what whoever looks needs.

    Attributes
    ----------
    environment : dict of str to str
    link : str
        With the token behind `#`, which browsers do not send.
    """

    environment: dict[str, str]
    link: str


def missing() -> str:
    """What is not installed that the API needs; the empty text: nothing."""
    return next((name for name in _NEEDED if importlib.util.find_spec(name) is None), "")


@contextmanager
def desk_access(port: int) -> Iterator[DeskAccess]:
    """Secrets in a folder of their own, which is gone afterwards."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415  # an extra: see `missing`
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    from copyrisk.api.scopes import Scope  # noqa: PLC0415
    from copyrisk.api.tokens import make_token  # noqa: PLC0415

    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    token = make_token(key, _NAME, tuple(Scope), ("*",), _TOKEN_S)
    with tempfile.TemporaryDirectory(prefix="copyrisk-demo-") as folder:
        secret_file, keys_file = Path(folder, "secret"), Path(folder, "keys.pem")
        with os.fdopen(os.open(secret_file, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        keys_file.write_bytes(public)
        environment = {
            "COPYRISK_API_PORT": str(port),
            "COPYRISK_API_SECRET_FILE": str(secret_file),
            "COPYRISK_API_TOKEN_KEYS_FILE": str(keys_file),
        }
        yield DeskAccess(environment, f"http://127.0.0.1:{port}/#token={token}")
