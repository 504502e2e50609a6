"""The master secret, `copyrisk-run keys`, and the keys that tokens are signed with."""

import argparse
import base64
import hmac
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from copyrisk import keyring
from copyrisk.api import tokens
from copyrisk.api.answers import ApiError
from copyrisk.api.scopes import Scope, parse_grant
from copyrisk.api.token_keys import parse_keys
from copyrisk.api.tokens import TokenKeys, make_token
from copyrisk.api_sections import ApiSettings
from copyrisk.errors import ConfigError, StoreError
from copyrisk.keyring import master_secret
from copyrisk.operations import COMMANDS, add_commands
from copyrisk.settings import load_settings
from copyrisk.signing import MasterSecret
from copyrisk.store.api_keys import BadRecord, KeyRecord, KeyState, parse_record, record_text
from tests.test_permissions import documented

MASTER = "the master secret of these tests, 32 and more"
SECRETS = MasterSecret(MASTER.encode())
HASH, TRAIL = "copyrisk:api:keys", "copyrisk:{audit}:trail"
SPKI = PublicFormat.SubjectPublicKeyInfo
Run = Callable[..., tuple[int, str]]


# ---- the master secret


def secret_file(folder: Path, text: str = MASTER, mode: int = 0o600) -> str:
    path = folder / "secret"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_the_master_secret_comes_from_a_file_or_a_variable(tmp_path: Path) -> None:
    of_file = load_settings(None, {"COPYRISK_API_SECRET_FILE": secret_file(tmp_path, f"\n {MASTER}\n")}, {}).api
    of_variable = load_settings(None, {"COPYRISK_API_SECRET": MASTER}, {}).api
    assert {master_secret(of_file).secret_of("k"), master_secret(of_variable).secret_of("k")} == {
        SECRETS.secret_of("k")
    }
    assert MASTER not in repr(of_variable) + repr(of_file)


def test_there_is_no_way_without_a_master_secret(tmp_path: Path) -> None:
    secret_file(tmp_path)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe", 0o600)
    wrong = {
        "api_secret_missing": [
            ApiSettings(),
            ApiSettings(secret="short"),
            ApiSettings(secret=" " * 40),
            ApiSettings(secret_file=secret_file(tmp_path, "x" * 31 + "\n")),
        ],
        "api_secret_unreadable": [
            ApiSettings(secret_file=str(tmp_path / name)) for name in ("none", "folder", "pipe", "secret/x")
        ],
        "bad_configuration": [ApiSettings(secret=MASTER, secret_file=str(tmp_path / "secret"))],
    }
    for code, chosen in wrong.items():
        for one in chosen:
            with pytest.raises(ConfigError) as refused:
                master_secret(one)
            assert (refused.value.code, "\n" in str(refused.value)) == (code, False)
            assert MASTER not in str(refused.value) and "short" not in str(refused.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o777])
def test_a_secret_that_others_may_read_is_none(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError) as refused:
        master_secret(ApiSettings(secret_file=secret_file(tmp_path, mode=mode)))
    assert refused.value.code == "api_secret_exposed"


def test_the_secret_does_not_stand_in_the_settings_file(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(f"[api]\nsecret = '{MASTER}'\n")
    with pytest.raises(ConfigError, match="COPYRISK_API_SECRET") as refused:
        load_settings(tmp_path / "settings.toml", {}, {})
    assert MASTER not in str(refused.value)
    with pytest.raises(ConfigError) as refused:
        load_settings(None, {}, {"api.secret": [MASTER]})
    assert MASTER not in str(refused.value)


# ---- records

records = st.builds(
    KeyRecord,
    st.sampled_from(["key_12345678", "key_12345679"]),
    st.text(max_size=5),
    st.lists(st.sampled_from(Scope).map(str), max_size=2).map(tuple),
    st.lists(st.sampled_from(["*", "live:*", "demo:7"]), max_size=2).map(tuple),
    st.integers(0, 2),
    st.none() | st.integers(0, 2),
    st.none() | st.integers(0, 2),
)


@settings(max_examples=30)
@given(records, records)
def test_a_record_is_read_back_and_no_other_fits_its_mac(record: KeyRecord, other: KeyRecord) -> None:
    text = record_text(record, SECRETS)
    assert parse_record(record.key_id, text.encode(), SECRETS) == record
    if other != record:
        said = json.loads(record_text(other, SECRETS)) | {"mac": json.loads(text)["mac"]}
        with pytest.raises(BadRecord):
            parse_record(other.key_id, json.dumps(said).encode(), SECRETS)


def test_states_of_a_key() -> None:
    key = KeyRecord("key_12345678", "n", (), (), 0, expires_ms=10, revoked_ms=None)
    assert [key.state(now_ms) for now_ms in (9, 10)] == [KeyState.ACTIVE, KeyState.EXPIRED]
    assert KeyRecord("key_12345678", "n", (), (), 0).state(1 << 60) is KeyState.ACTIVE
    assert KeyRecord("key_12345678", "n", (), (), 0, 10, 5).state(99) is KeyState.REVOKED


# ---- commands


@pytest.fixture
def run(bundled_server: Any, capsys: pytest.CaptureFixture[str]) -> Run:
    """Carry out a command line; its exit code and what it printed."""

    def carry_out(*words: str, url: str | None = bundled_server.url, secret: str | None = MASTER) -> tuple[int, str]:
        parser = argparse.ArgumentParser()
        add_commands(parser)
        options = parser.parse_args(words)
        environ = {} if secret is None else {"COPYRISK_API_SECRET": secret}
        code = COMMANDS[options.command](
            load_settings(None, environ, {} if url is None else {"redis.url": url}), options
        )
        return code, capsys.readouterr().out

    return carry_out


NEW = ("keys", "new", "--name", "billing", "--scopes", "orders:write, orders:read", "--accounts", "live:*,demo:7")


def acts(client: Any) -> list[tuple[str, dict[str, Any]]]:
    lines = [json.loads(fields[b"entry"]) for _, fields in client.xrange(TRAIL)]
    return [(line["cause"], line["said"]) for line in lines if line["kind"] == "operator"]


def test_a_key_is_made_shown_once_listed_and_revoked(run: Run, bundled_server: Any) -> None:
    client = bundled_server.client()
    code, out = run(*NEW, "--expires-days", "90")
    assert code == 0
    key_id, secret = (line.split()[-1] for line in out.splitlines()[:2])
    assert secret == SECRETS.secret_of(key_id)
    record = parse_record(key_id, client.hget(HASH, key_id), SECRETS)
    assert (record.name, record.scopes) == ("billing", ("orders:read", "orders:write"))
    assert (record.accounts, record.revoked_ms) == (("live:*", "demo:7"), None)
    assert record.expires_ms == record.made_ms + 90 * 86_400_000
    code, out = run("keys", "list")
    assert f"{key_id}  active  billing  orders:read,orders:write  live:*,demo:7" in out and out.endswith("1 keys\n")
    assert run("keys", "revoke", key_id) == (0, f"{key_id} is revoked; within a second it may do nothing more\n")
    assert run("keys", "revoke", key_id) == (0, f"{key_id} is revoked already\n")
    (row,) = json.loads(run("keys", "list", "--json")[1])
    assert (row["key_id"], row["state"], row["expires_ms"]) == (key_id, "revoked", record.expires_ms)
    assert [cause for cause, _ in acts(client)] == ["keys new", "keys revoke"]
    assert acts(client)[0][1]["granted"] == ["live:*", "demo:7"]
    kept = b"".join(client.dump(name) or b"" for name in client.scan_iter())
    assert secret.encode() not in kept and MASTER.encode() not in kept
    client.close()


def test_what_the_audit_trail_does_not_take_is_not_done(run: Run, bundled_server: Any) -> None:
    client = bundled_server.client()
    assert run(*NEW)[0] == 0
    before = client.hgetall(HASH)
    client.delete("copyrisk:{audit}:trail")
    client.set("copyrisk:{audit}:trail", "no stream")
    for words in (NEW, ("keys", "revoke", next(iter(before)).decode())):
        with pytest.raises(StoreError):
            run(*words)
    assert client.hgetall(HASH) == before
    client.close()


def test_the_user_that_the_page_describes_may_do_it(redis_server: Any, run: Run) -> None:
    with redis_server.client() as client:
        client.function_flush()
        rules = ("reset", "on", ">pw", "resetkeys", "resetchannels", "-@all", *documented("keys"))
        client.execute_command("ACL", "SETUSER", "keys", *rules)
    url = redis_server.url.replace("unix://", "unix://keys:pw@")
    key_id = json.loads(run(*NEW, "--json", url=url)[1])["key_id"]
    assert run("keys", "revoke", key_id, url=url)[0] == 0
    assert "revoked" in run("keys", "list", url=url)[1]


def test_the_whole_command_line(bundled_server: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "copyrisk.cli", "--redis", bundled_server.url, *NEW, "--json"]
    environ = {**os.environ, "COPYRISK_API_SECRET_FILE": secret_file(tmp_path)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["secret"].startswith("crs_")


def test_a_key_for_programs(run: Run) -> None:
    said = json.loads(run(*NEW, "--json")[1])
    assert said == {"key_id": said["key_id"], "secret": SECRETS.secret_of(said["key_id"])}
    assert said["key_id"] != json.loads(run(*NEW, "--json")[1])["key_id"]
    assert said["secret"] not in "".join(run("keys", "list", *more)[1] for more in ([], ["--json"]))


def test_a_record_of_somebody_else_is_shown_and_can_be_revoked(run: Run, bundled_server: Any) -> None:
    client = bundled_server.client()
    client.hset(HASH, mapping={"key_12345678": "{}", b"\xff\x1b[31m": "x"})
    assert "key_12345678  unreadable" in run("keys", "list")[1]
    assert "\x1b" not in run("keys", "list")[1]
    assert {row["state"] for row in json.loads(run("keys", "list", "--json")[1])} == {"unreadable"}
    assert run("keys", "revoke", "key_12345678")[0] == 0
    assert parse_record("key_12345678", client.hget(HASH, "key_12345678"), SECRETS).revoked_ms
    client.close()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((*NEW[:4], "--scopes", "orders:*", "--accounts", "*"), "invalid_scope"),
        ((*NEW[:4], "--scopes", "", "--accounts", "*"), "invalid_scope"),
        ((*NEW[:6], "--accounts", "live"), "invalid_account_grant"),
        ((*NEW[:6], "--accounts", "live:{7}"), "invalid_account_grant"),
        ((*NEW, "--expires-days", "0"), "bad_configuration"),
        ((*NEW, "--expires-days", "3651"), "bad_configuration"),
        ((*NEW, "--name", ""), "bad_configuration"),
        ((*NEW, "--name", "a\nb"), "bad_configuration"),
        ((*NEW, "--name", "n" * 81), "bad_configuration"),
        (("keys", "revoke", "key_nobody_has"), "unknown_key"),
        (("keys", "revoke", "{}"), "invalid_key_id"),
    ],
)
def test_what_makes_no_sense_changes_nothing(run: Run, bundled_server: Any, words: Any, code: str) -> None:
    with pytest.raises(ConfigError) as refused:
        run(*words)
    assert refused.value.code == code
    with bundled_server.client() as client:
        assert not client.exists(HASH, TRAIL)


def test_no_command_works_without_server_or_secret(run: Run, bundled_server: Any) -> None:
    for words in (NEW, ("keys", "list"), ("keys", "revoke", "key_12345678")):
        with pytest.raises(ConfigError, match="--redis"):
            run(*words, url=None)
        with pytest.raises(ConfigError) as refused:
            run(*words, secret=None)
        assert refused.value.code == "api_secret_missing"
    with bundled_server.client() as client:
        client.set(TRAIL, "no stream")  # what cannot be written down is not done
        with pytest.raises(StoreError):
            run(*NEW)
        assert not client.exists(HASH)


def test_an_id_that_is_taken_is_not_taken_over(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "new_key_id", lambda: "key_12345678")
    assert run(*NEW)[0] == 0
    with pytest.raises(Exception, match="already"):
        run(*NEW)


# ---- keys that tokens are signed with

PRIVATE: dict[str, Any] = {
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "P-521": ec.generate_private_key(ec.SECP521R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    "Ed448": ed448.Ed448PrivateKey.generate(),
    "RSA": rsa.generate_private_key(65_537, 2_048),
}
ALGORITHMS = {
    "P-256": ["ES256"],
    "P-384": ["ES384"],
    "P-521": ["ES512"],
    "Ed25519": ["EdDSA"],
    "Ed448": ["EdDSA"],
    "RSA": ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"],
}
SMALL = rsa.generate_private_key(65_537, 1_024)
MINE = PRIVATE["P-256"]


def pem(key: Any) -> bytes:
    written: bytes = key.public_key().public_bytes(Encoding.PEM, SPKI)
    return written


def private_pem(key: Any) -> bytes:
    written: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return written


def jwk(key: Any, **more: Any) -> dict[str, Any]:
    kind: Any = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else OKPAlgorithm
    kind = ECAlgorithm if isinstance(key, ec.EllipticCurvePrivateKey) else kind
    return {**kind.to_jwk(key.public_key(), as_dict=True), **more}


def jwks(*listed: Any) -> bytes:
    return json.dumps({"keys": listed}).encode()


def certificate(key: Any) -> bytes:
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer")]), datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    return made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def verifier(folder: Path, text: bytes, **more: Any) -> TokenKeys:
    path = folder / "keys"
    path.write_bytes(text)
    return TokenKeys(path, **{"audience": "copyrisk", **more})


def token(key: Any = MINE, algorithm: str = "ES256", headers: Any = None, **claims: Any) -> str:
    said = {"sub": "ann", "aud": "copyrisk", "exp": int(time.time()) + 60, "scope": "risk:read", "accounts": ["*"]}
    given = {name: value for name, value in {**said, **claims}.items() if value is not None}
    return jwt.encode(given, key, algorithm, headers=headers)


def code_of(keys: TokenKeys, said: str) -> str:
    try:
        keys.verify(said)
    except ApiError as failure:
        refused = failure
    else:
        return "ok"
    assert len(said) < 5 or said not in str(refused)
    return refused.code


@pytest.mark.parametrize("kind", PRIVATE)
@pytest.mark.parametrize("form", ["pem", "jwks"])
def test_each_kind_of_key_takes_its_own_algorithms_only(tmp_path: Path, kind: str, form: str) -> None:
    key = PRIVATE[kind]
    keys = verifier(tmp_path, pem(key) if form == "pem" else jwks(jwk(key, kid="k", use="sig")))
    for algorithm in ALGORITHMS[kind]:
        assert code_of(keys, token(key, algorithm)) == "ok"
    claims = keys.verify(make_token(key, "ann", [Scope.RISK_READ], ["live:*"], 60, kid="k"))
    assert (claims.subject, claims.scopes, claims.grant) == ("ann", {Scope.RISK_READ}, parse_grant(["live:*"]))
    for other, foreign in PRIVATE.items():
        if other != kind:
            assert code_of(keys, token(foreign, ALGORITHMS[other][0])) == "invalid_token"


def part(said: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(said).encode()).rstrip(b"=").decode()


def unsigned(algorithm: str) -> str:
    return f"{part({'alg': algorithm, 'typ': 'JWT'})}.{token().split('.')[1]}."


def with_the_public_key_as_secret(key: bytes) -> str:
    text = f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{token().split('.')[1]}"
    return text + "." + base64.urlsafe_b64encode(hmac.digest(key, text.encode(), "sha256")).rstrip(b"=").decode()


def bad_tokens() -> dict[str, tuple[str, str]]:
    now, whole = int(time.time()), token()
    header, payload, signature = whole.split(".")
    nested = base64.urlsafe_b64encode(b"[" * 5_500).rstrip(b"=").decode()
    invalid = {
        "empty": "",
        "garbage": "a.b.c",
        "not ASCII": "é.é.é",
        "a lone surrogate": "\udcff",
        "nested": f"{nested}.{payload}.{signature}",
        "none": unsigned("none"),
        "None": unsigned("NoNe"),
        "ES256 without a signature": unsigned("ES256"),
        "the public key as secret": with_the_public_key_as_secret(pem(MINE)),
        "another key": token(ec.generate_private_key(ec.SECP256R1())),
        "another payload": f"{header}.{part({'sub': 'eve', 'aud': 'copyrisk', 'exp': now + 60})}.{signature}",
        "crit": token(headers={"crit": ["exp"], "exp": 1}),
        "b64": token(headers={"crit": ["b64"]}),
        "too long": token(pad="x" * 8_192),
        "not yet": token(nbf=now + 3_600),
        "from the future": token(iat=now + 3_600),
        "for somebody else": token(aud="billing"),
        "for nobody": token(aud=None),
        "of nobody": token(sub=None),
        "of two words": token(sub="a b"),
        "of a long name": token(sub="a" * 129),
        "of a name with a newline": token(sub="a\nb"),
        "for ever": token(exp=None),
        "until a word": token(exp="soon"),
        "until infinity": token(exp=float("inf")),
        "with scopes in a list": token(scope=["risk:read"]),
        "with accounts in a text": token(accounts="*"),
        "with numbers for accounts": token(accounts=[1]),
        "with accounts that are none": token(accounts=["live:{1}"]),
    }
    return {name: (said, "invalid_token") for name, said in invalid.items()} | {
        "expired": (token(exp=now - 31), "expired_token"),
        "expired long ago": (token(exp=0), "expired_token"),
    }


@pytest.mark.parametrize("case", bad_tokens())
def test_what_is_no_token(tmp_path: Path, case: str) -> None:
    said, code = bad_tokens()[case]
    keys = verifier(tmp_path, pem(MINE))
    assert (code_of(keys, said), keys.known(said, time.time())) == (code, None)


def test_clocks_may_differ_and_words_of_others_are_passed_over(tmp_path: Path) -> None:
    now, keys = int(time.time()), verifier(tmp_path, pem(MINE))
    said = token(exp=now - 10, nbf=now + 10, aud=["other", "copyrisk"], scope="openid risk:read", accounts=None)
    claims = keys.verify(said)
    assert (claims.scopes, claims.grant) == ({Scope.RISK_READ}, parse_grant([]))
    assert keys.known(said, now) == claims


def test_an_issuer_that_is_set_is_checked(tmp_path: Path) -> None:
    keys = verifier(tmp_path, pem(MINE), issuer="https://id.example")
    assert [code_of(keys, token(iss=name)) for name in ("https://id.example", "https://id.example/", None)] == [
        "ok",
        "invalid_token",
        "invalid_token",
    ]


def test_kid_chooses_and_alg_of_the_key_holds(tmp_path: Path) -> None:
    first, second = PRIVATE["P-256"], ec.generate_private_key(ec.SECP256R1())
    narrow = jwk(PRIVATE["RSA"], kid="r", alg="PS256", key_ops=["verify"])
    keys = verifier(tmp_path, jwks(jwk(first, kid="1"), jwk(second, kid="2"), narrow))
    assert code_of(keys, token(second, headers={"kid": "2"})) == "ok"
    assert code_of(keys, token(second, headers={"kid": "1"})) == "invalid_token"
    assert code_of(keys, token(second, headers={"kid": "3"})) == "invalid_token"
    assert code_of(keys, token(second)) == "ok"
    assert code_of(keys, token(PRIVATE["RSA"], "PS256")) == "ok"
    assert code_of(keys, token(PRIVATE["RSA"], "RS256")) == "invalid_token"


def test_files_with_several_keys(tmp_path: Path) -> None:
    both = verifier(tmp_path, b"our issuers\n" + pem(PRIVATE["RSA"]) + certificate(MINE))
    assert [code_of(both, token()), code_of(both, token(PRIVATE["RSA"], "RS256", {"kid": "any"}))] == ["ok", "ok"]
    passed_over = [
        jwk(PRIVATE["P-384"], use="enc"),
        jwk(PRIVATE["P-384"], key_ops=["encrypt"]),
        {"kty": "new", "x": "y"},
        {"kty": "OKP", "crv": "X25519", "x": "AA"},
        jwk(MINE),
    ]
    keys = verifier(tmp_path, jwks(*passed_over))
    assert [code_of(keys, token()), code_of(keys, token(PRIVATE["P-384"], "ES384"))] == ["ok", "invalid_token"]
    assert code_of(verifier(tmp_path, json.dumps(jwk(MINE)).encode()), token()) == "ok"


UNUSABLE = {
    "empty": b"",
    "words": b"keys",
    "binary": b"\xff\xfe",
    "not JSON": b"{",
    "nested": b'{"keys":' + b"[" * 50_000,
    "a list of words": jwks("x"),
    "no list": b'{"keys": 7}',
    "no keys": jwks(),
    "keys for encryption only": jwks(jwk(MINE, use="enc")),
    "kinds in lists": jwks({"kty": ["EC"]}),
    "a number for uses": jwks(jwk(MINE, key_ops=7)),
    "a point that is not on the curve": jwks(jwk(MINE, x="AAAA")),
    "no point": jwks({"kty": "EC", "crv": "P-256"}),
    "a shared secret": jwks(jwk(MINE), {"kty": "oct", "k": "c2VjcmV0"}),
    "a private key": jwks({**json.loads(ECAlgorithm.to_jwk(MINE)), "kid": "1"}),
    "a private PEM": private_pem(MINE),
    "small RSA": pem(SMALL),
    "small RSA in a JWKS": jwks(jwk(SMALL)),
    "X25519": pem(x25519.X25519PrivateKey.generate()),
    "a broken PEM": b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
    "a broken certificate": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    "too many": jwks(*(jwk(MINE) for _ in range(33))),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_files_that_are_refused(tmp_path: Path, case: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_keys(UNUSABLE[case])
    with pytest.raises(ConfigError) as refused:
        verifier(tmp_path, UNUSABLE[case])
    assert refused.value.code == "token_keys_unusable" and "\n" not in str(refused.value)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError) as refused:
            TokenKeys(path, audience="copyrisk")
        assert refused.value.code == "token_keys_unusable"


def test_a_file_that_changes_is_read_again_and_a_broken_one_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "LOOK_S", 0.0)
    keys, path, old, new = verifier(tmp_path, pem(MINE)), tmp_path / "keys", token(), token(PRIVATE["P-384"], "ES384")
    assert [code_of(keys, old), code_of(keys, new)] == ["ok", "invalid_token"]
    for broken in (b"broken", private_pem(MINE), None):
        path.unlink()
        if broken is not None:
            path.write_bytes(broken)
        with structlog.testing.capture_logs() as lines:
            assert [code_of(keys, old), code_of(keys, old)] == ["ok", "ok"]
        assert [line["event"] for line in lines] == ["token_keys_kept"]
        path.touch()
    path.write_bytes(pem(PRIVATE["P-384"]))
    assert keys.known(old, time.time()) is None
    assert [code_of(keys, old), code_of(keys, new)] == ["invalid_token", "ok"]
