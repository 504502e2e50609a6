"""Signatures: no two requests have the same text, nothing that is changed stays signed, and secrets do not show."""

import copy
import hashlib
import hmac
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from copyrisk.signing import (
    MasterSecret,
    Unsignable,
    canonical_text,
    is_key_id,
    is_signed,
    new_key_id,
    new_nonce,
    sign,
    signed_headers,
)

MASTER = MasterSecret(b"m" * 32)
SECRET = MASTER.secret_of("key_0123456789")
PARTS: dict[str, Any] = {
    "method": "POST",
    "target": b"/api/orders/instant/execute",
    "body": b'{"user_id":"1"}',
    "time_ms": "1760000000000",
    "nonce": "AAAAAAAAAAAAAAAA",
    "idempotency_key": "order-1",
}
NAMES = tuple(PARTS)

requests = st.builds(
    lambda method, path, body, time_ms, nonce, key: dict(
        zip(NAMES, (method, path, body, time_ms, nonce, key), strict=True)
    ),
    st.sampled_from(["GET", "POST", "PUT"]),
    st.text("a/?&=%~é", max_size=6).map(lambda path: b"/" + path.encode("latin-1")),
    st.binary(max_size=3),
    st.sampled_from(["0", "1", "10", "1760000000000", "9" * 15]),
    st.text("aB0_-", min_size=16, max_size=18),
    st.text("a:é .-", max_size=4),
)


@settings(max_examples=40)
@given(requests, requests)
def test_no_two_requests_have_the_same_text(one: dict[str, Any], other: dict[str, Any]) -> None:
    assume(one != other)
    assert canonical_text(**one) != canonical_text(**other)


@settings(max_examples=40)
@given(requests, st.data())
def test_a_change_of_any_part_breaks_the_signature(parts: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(parts)))
    changed = {**parts, name: data.draw(requests)[name]}
    assume(changed != parts)
    signature = sign(SECRET, canonical_text(**parts))
    assert is_signed(SECRET, canonical_text(**parts), signature)
    assert not is_signed(SECRET, canonical_text(**changed), signature)
    assert not is_signed(MASTER.secret_of("key_other000"), canonical_text(**parts), signature)


@settings(max_examples=40)
@given(requests)
def test_the_text_is_what_the_page_says(parts: dict[str, Any]) -> None:
    lines = canonical_text(**parts).split(b"\n")
    assert lines == [
        b"copyrisk-hmac-sha256-1",
        parts["method"].encode(),
        parts["target"],
        parts["time_ms"].encode(),
        parts["nonce"].encode(),
        hashlib.sha256(parts["body"]).hexdigest().encode(),
        parts["idempotency_key"].encode("latin-1"),
    ]


@settings(max_examples=40)
@given(requests, st.sampled_from(sorted(set(PARTS) - {"body"})), st.integers(0, 20), st.sampled_from("\n\r\0"))
@example(PARTS, "idempotency_key", 7, "\n")
def test_no_part_can_end_a_line(parts: dict[str, Any], name: str, place: int, sign_of_end: str) -> None:
    end: Any = sign_of_end.encode() if name == "target" else sign_of_end
    with pytest.raises(Unsignable):
        canonical_text(**{**parts, name: parts[name][:place] + end + parts[name][place:]})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("method", "post"),
        ("method", ""),
        ("target", b""),
        ("target", b"api"),
        ("target", b"/a b"),
        ("time_ms", ""),
        ("time_ms", "-1"),
        ("time_ms", "01"),
        ("time_ms", "1e3"),
        ("time_ms", "٣"),
        ("time_ms", "1" * 16),
        ("nonce", "A" * 15),
        ("nonce", "A" * 65),
        ("nonce", "A" * 15 + ":"),
        ("nonce", "A" * 15 + "é"),
        ("idempotency_key", "\t"),
        ("idempotency_key", "Ω"),
    ],
)
def test_what_cannot_be_signed(name: str, value: Any) -> None:
    with pytest.raises(Unsignable) as refused:
        canonical_text(**{**PARTS, name: value})
    assert refused.value.code == "invalid_signature"


@pytest.mark.parametrize("signature", ["", "0" * 63, "0" * 65, "G" * 64, "é" * 64, "\ud800", "0" * 64])
def test_what_is_no_signature(signature: str) -> None:
    assert not is_signed(SECRET, canonical_text(**PARTS), signature)


def test_a_signature_has_one_form() -> None:
    signature = sign(SECRET, canonical_text(**PARTS))
    assert not is_signed(SECRET, canonical_text(**PARTS), signature.upper())


def test_headers_are_those_of_the_page() -> None:
    headers = signed_headers(
        "key_0123456789",
        SECRET,
        PARTS["method"],
        PARTS["target"],
        PARTS["body"],
        idempotency_key="order-1",
        time_ms=1_760_000_000_000,
        nonce="A" * 16,
    )
    page = (Path(__file__).parent.parent / "docs" / "access.md").read_text()
    for name, value in headers.items():
        assert re.search(rf"^{name}: {re.escape(value)}$", page, re.MULTILINE), f"{name}: {value}"
    assert f"`{SECRET}`" in page
    assert headers["X-Copyrisk-Signature"] == hmac.new(SECRET.encode(), canonical_text(**PARTS), "sha256").hexdigest()


def test_headers_without_a_key_and_of_now() -> None:
    first, second = (signed_headers("key_0123456789", SECRET, "GET", b"/") for _ in range(2))
    assert "Idempotency-Key" not in first
    assert first["X-Copyrisk-Nonce"] != second["X-Copyrisk-Nonce"]
    assert first["X-Copyrisk-Signature"] != second["X-Copyrisk-Signature"]


def test_new_ids_and_nonces_fit_their_grammars() -> None:
    ids, nonces = {new_key_id() for _ in range(100)}, {new_nonce() for _ in range(100)}
    assert len(ids) == len(nonces) == 100
    assert all(map(is_key_id, ids))
    for nonce in nonces:
        canonical_text(**{**PARTS, "nonce": nonce})


@pytest.mark.parametrize("text", ["", "short", "a" * 65, "key:1234567", "key_123456\n", "key_{12345}", "kéy_123456"])
def test_what_is_no_key_id(text: str) -> None:
    assert not is_key_id(text)


def test_secrets_follow_from_master_and_id_alone() -> None:
    assert MasterSecret(b" " + b"m" * 32 + b"\n").secret_of("key_0123456789") == SECRET
    assert MasterSecret(b"n" * 32).secret_of("key_0123456789") != SECRET
    assert len({MASTER.secret_of(f"key_{number:010}") for number in range(100)} | {SECRET}) == 101
    assert re.fullmatch(r"crs_[A-Za-z0-9_-]{43}", SECRET)


def test_a_mac_is_of_its_text_and_is_no_secret_of_a_key() -> None:
    mac = MASTER.mac_of(b"text")
    assert MASTER.is_mac(b"text", mac)
    assert not any(MASTER.is_mac(b"text", wrong) for wrong in ("", mac[1:], "é", MASTER.mac_of(b"texu")))
    assert mac not in MASTER.secret_of("text")


@pytest.mark.parametrize("secret", [b"", b"m" * 31, b" " * 40, b"m" * 31 + b"\n\n"])
def test_a_master_secret_is_long(secret: bytes) -> None:
    with pytest.raises(ValueError, match="32"):
        MasterSecret(secret)


def test_a_master_secret_does_not_show() -> None:
    assert repr(MASTER) == str(MASTER) == f"{MASTER}" == "MasterSecret(...)"
    with pytest.raises(TypeError):
        pickle.dumps(MASTER)
    with pytest.raises(TypeError):
        copy.copy(MASTER)
