"""Sealing: the blob's format to the byte, and that a blob opens in its own place only, or not at all."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.errors import KeyUnavailable, VaultError
from broker.vault.keyring import FileKeyring
from broker.vault.seal import Binding, DataKey, owner_id, prepare, rewrap, seal, unseal

PLAINTEXT = b'{"access_token":"at-1","refresh_token":"rt-1"}'


def split(blob: bytes) -> dict[str, bytes]:
    """Take a blob apart by its description, independently of the code under test."""
    ref_size = int.from_bytes(blob[4:6], "big")
    at = 6 + ref_size
    wrapped_size = int.from_bytes(blob[at : at + 2], "big")
    rest = at + 2 + wrapped_size
    return {
        "header": blob[:4],
        "kek_ref": blob[6:at],
        "wrapped_dek": blob[at + 2 : rest],
        "nonce": blob[rest : rest + 12],
        "commit": blob[rest + 12 : rest + 44],
        "ciphertext": blob[rest + 44 :],
    }


def counting_from(value: int) -> Callable[[int], bytes]:
    """Stand in for randomness with the bytes value, value + 1, …"""
    following = iter(range(value, 256))
    return lambda size: bytes(next(following) for _ in range(size))


# --- the format -------------------------------------------------------------------------------------------------

KEK, DEK, NONCE = bytes(range(0x00, 0x20)), bytes(range(0x20, 0x40)), bytes(range(0x40, 0x4C))
WRAPPED_DEK = "04f8a3c3c302d3b0b7e94b14dcf85ad1da69cd74056ed7907d3cb49fb27799a4104db058f2901adb"
AAD_DIGEST = "3d130ca80a19cdb69a0aff5a19b87ddf918ecf7d8e7bf6503ed51414b346e175"
K_ENC = "60c2e0cd396116bc6b0895847eef7147b1fbe352ecc064670c71eb7ef7f486a8"
COMMIT = "8894c95795394bd1015ce7899a8e2aaf584f85af66f2c4af66777f32b03d9845"
CIPHERTEXT = (
    "898226ebb885d4d37bc3bd682b31ca3270fbcac2df164a8fffe60ba3b63a8699b61145017ae3a0e6ad437929062c965c217fe40e7e846fb0b28695"
    "00ce86"
)


@pytest.fixture
def known_keyring(tmp_path: Path) -> FileKeyring:
    """The keyring of the known answer, written by hand: it pins the file's format too."""

    def version(number: int, state: str, key: bytes | None) -> dict[str, Any]:
        text = None if key is None else base64.b64encode(key).decode()
        return {"number": number, "state": state, "created_at": "2026-11-20T12:00:00Z", "key": text}

    versions = [version(1, "destroyed", None), version(2, "disabled", bytes(32)), version(3, "primary", KEK)]
    lookup = dict.fromkeys(("api_key", "fingerprint", "token_id"), base64.b64encode(bytes(32)).decode())
    path = tmp_path / "known.json"
    path.write_text(json.dumps({"format": 1, "key_id": "kek-a", "versions": versions, "lookup": lookup}))
    return FileKeyring.open(path)


def test_known_answer_is_reproduced_to_the_byte(known_keyring, binding):
    """A blob written today is the blob of the format's description, so every later release can open it."""
    sealed = seal(prepare(known_keyring, random=counting_from(0x20)), binding, PLAINTEXT)

    assert sealed.kek_ref == "local:kek-a:3"
    assert sealed.blob == b"".join(
        (
            b"TV\x01\x01\x00\x0dlocal:kek-a:3\x00\x28",
            bytes.fromhex(WRAPPED_DEK),
            NONCE,
            bytes.fromhex(COMMIT),
            bytes.fromhex(CIPHERTEXT),
        )
    )
    assert unseal(known_keyring, binding, sealed.blob) == PLAINTEXT


def test_known_answer_follows_from_its_description():
    """Every value of the vector comes out of cryptography's own primitives, put together by the description."""
    fields = (b"\1", b"\1", b"dep-1", b"tenant-a", b"grant-1", b"user-1", b"pc-1", b"token_set", (7).to_bytes(8, "big"))
    aad = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    place = hashlib.sha256(aad).digest()

    def derived(label: bytes) -> bytes:
        return HKDF(SHA256(), 32, salt=None, info=label + place).derive(DEK)

    assert place.hex() == AAD_DIGEST
    assert aes_key_wrap(KEK, DEK).hex() == WRAPPED_DEK
    assert derived(b"tv1 enc").hex() == K_ENC
    assert derived(b"tv1 commit").hex() == COMMIT
    assert AESGCM(bytes.fromhex(K_ENC)).encrypt(NONCE, PLAINTEXT, aad).hex() == CIPHERTEXT


_text = st.text(st.characters(codec="utf-8"), max_size=40)
_bindings = st.builds(
    Binding,
    deployment_id=_text,
    environment_id=_text,
    connection_id=_text,
    owner_id=_text,
    integration_id=_text,
    secret_kind=st.sampled_from(("token_set", "receipt", "client_secret")),
    version_no=st.integers(0, 2**63 - 1),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(binding=_bindings, other=_bindings, plaintext=st.binary(max_size=4096))
def test_what_was_sealed_opens_in_its_own_place_only(keyring, binding, other, plaintext):
    """Any bytes come back whole under their own binding, and under no other one."""
    blob = seal(keyring, binding, plaintext).blob

    assert unseal(keyring, binding, blob) == plaintext
    if other != binding:
        with pytest.raises(VaultError):
            unseal(keyring, other, blob)


def test_every_message_has_a_data_key_and_a_nonce_of_its_own(keyring, binding):
    """Ten thousand blobs of one plaintext share no data key (AES-KW is deterministic), nonce or ciphertext."""
    parts = [split(seal(keyring, binding, PLAINTEXT).blob) for _ in range(10_000)]

    for name in ("wrapped_dek", "nonce", "commit", "ciphertext"):
        assert len({part[name] for part in parts}) == len(parts)


def test_owner_is_written_unambiguously():
    """The form is stored inside every blob's binding: it never changes, and no two owners share one."""
    assert owner_id("user-1", None) == "user:6:user-1"
    assert owner_id(None, "org_1") == "organization:5:org_1"
    assert owner_id("user-1", "org_1") == "user:6:user-1 organization:5:org_1"
    assert owner_id(None, None) == ""
    assert owner_id("u organization:1:o", None) != owner_id("u", "o")
    assert owner_id("", None) != owner_id(None, None)


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_any_flipped_byte_is_refused(keyring, binding, flip):
    """No position of a blob can be changed: it never yields a plaintext, and never an error of another kind."""
    blob = seal(keyring, binding, PLAINTEXT).blob

    for position in range(len(blob)):
        damaged = bytearray(blob)
        damaged[position] ^= flip
        with pytest.raises(VaultError):
            unseal(keyring, binding, bytes(damaged))


def test_any_truncated_or_extended_blob_is_refused(keyring, binding):
    blob = seal(keyring, binding, PLAINTEXT).blob

    for size in range(len(blob)):
        with pytest.raises(VaultError):
            unseal(keyring, binding, blob[:size])
    for more in (b"\0", b"\xff" * 16, blob):
        with pytest.raises(VaultError):
            unseal(keyring, binding, blob + more)


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"deployment_id": "dep-2"},
        {"environment_id": "tenant-b"},
        {"connection_id": "grant-2"},
        {"owner_id": "user-2"},
        {"integration_id": "pc-2"},
        {"secret_kind": "receipt"},
        {"version_no": 8},
        {"deployment_id": "dep-1t", "environment_id": "enant-a"},
    ],
)
def test_a_blob_moved_to_another_place_is_refused(keyring, binding, elsewhere):
    """Blobs swapped between rows, kinds, environments or versions do not open, whoever writes to the database."""
    here, there = binding, msgspec.structs.replace(binding, **elsewhere)
    first, second = seal(keyring, here, b"first").blob, seal(keyring, there, b"second").blob

    for place, swapped in ((here, second), (there, first)):
        with pytest.raises(VaultError):
            unseal(keyring, place, swapped)
    assert (unseal(keyring, here, first), unseal(keyring, there, second)) == (b"first", b"second")


def test_a_data_key_put_before_another_message_is_refused(keyring, binding):
    """Header of one blob, message of another, same place: the commitment does not match."""
    first, second = seal(keyring, binding, PLAINTEXT).blob, seal(keyring, binding, PLAINTEXT).blob
    message = len(PLAINTEXT) + 16 + 32 + 12

    with pytest.raises(VaultError) as refused:
        unseal(keyring, binding, first[:-message] + second[-message:])

    assert isinstance(refused.value.__cause__, ValueError)


def test_a_message_without_the_commitment_is_refused(keyring, binding):
    """A ciphertext that GCM would accept is refused by its commitment alone."""
    blob = seal(keyring, binding, PLAINTEXT).blob
    commit = split(blob)["commit"]

    with pytest.raises(VaultError) as refused:
        unseal(keyring, binding, blob.replace(commit, bytes(32)))

    assert isinstance(refused.value.__cause__, ValueError)


def test_refusals_say_one_thing(keyring, binding):
    """The message tells a reader nothing about why; the cause is for the audit."""
    blob = seal(keyring, binding, PLAINTEXT).blob
    moved = msgspec.structs.replace(binding, version_no=8)
    attempts = [
        (binding, b""),
        (binding, b"XX" + blob[2:]),
        (binding, blob[:-1]),
        (binding, blob + b"\0"),
        (moved, blob),
    ]

    messages = set()
    for place, damaged in attempts:
        with pytest.raises(VaultError) as refused:
            unseal(keyring, place, damaged)
        messages.add(refused.value.message)

    assert messages == {"A sealed secret could not be opened."}


def test_another_deployments_keyring_is_told_apart(keyring, binding, tmp_path):
    """A restored database with the wrong keyring says that the key is missing, not that the data is damaged."""
    blob = seal(keyring, binding, PLAINTEXT).blob

    with pytest.raises(KeyUnavailable):
        unseal(FileKeyring.create(tmp_path / "other.json"), binding, blob)


# --- prepared keys ----------------------------------------------------------------------------------------------


def test_a_prepared_key_seals_one_message(keyring, binding):
    """A second message under one key is refused before anything is encrypted."""
    data_key = prepare(keyring)
    sealed = seal(data_key, binding, PLAINTEXT)

    with pytest.raises(RuntimeError):
        seal(data_key, binding, PLAINTEXT)
    assert unseal(keyring, binding, sealed.blob) == PLAINTEXT


def test_a_prepared_key_outlives_the_keyring_file(keyring, binding):
    """Once prepared, sealing needs nothing: not the file, and not the version that is primary by then."""
    data_key = prepare(keyring)
    keyring.rotate()
    content = keyring.path.read_bytes()
    keyring.path.unlink()

    sealed = seal(data_key, binding, PLAINTEXT)

    keyring.path.write_bytes(content)
    assert unseal(keyring, binding, sealed.blob) == PLAINTEXT


def test_a_prepared_key_shows_nothing_and_cannot_be_copied():
    data_key = DataKey(dek=b"d" * 32, nonce=b"n" * 12, wrapped=b"w" * 40, kek_ref="local:kek-a:3")

    assert repr(data_key) == str(data_key) == f"{data_key}" == "DataKey(kek_ref='local:kek-a:3')"
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            duplicate(data_key)


# --- rewrap -----------------------------------------------------------------------------------------------------


def test_rewrap_changes_the_wrapped_key_and_nothing_else(keyring, binding):
    """Nonce, commitment and ciphertext stay byte for byte; the result opens without the old key version."""
    before = seal(keyring, binding, PLAINTEXT)
    new, previous = keyring.rotate()

    after = rewrap(keyring, before.blob)

    assert after is not None
    assert (before.kek_ref, after.kek_ref) == (previous, new)
    old_parts, new_parts = split(before.blob), split(after.blob)
    assert {name for name in old_parts if old_parts[name] != new_parts[name]} == {"kek_ref", "wrapped_dek"}
    keyring.disable(previous)
    assert unseal(keyring, binding, after.blob) == PLAINTEXT
    with pytest.raises(KeyUnavailable):
        unseal(keyring, binding, before.blob)


def test_rewrap_leaves_a_current_blob_alone(keyring, binding):
    assert rewrap(keyring, seal(keyring, binding, PLAINTEXT).blob) is None


def test_rewrap_refuses_what_it_cannot_read(keyring, binding):
    """A damaged header is reported, a disabled version is named unavailable; neither is passed over."""
    blob = seal(keyring, binding, PLAINTEXT).blob
    _, previous = keyring.rotate()

    message = len(PLAINTEXT) + 16 + 32 + 12
    for damaged in (b"TV\x01\x02" + blob[4:], blob[:-message], blob[: 12 + 32 + 15 - message]):
        with pytest.raises(VaultError):
            rewrap(keyring, damaged)
    wrapped = split(blob)["wrapped_dek"]
    with pytest.raises(VaultError) as refused:
        rewrap(keyring, blob.replace(wrapped, wrapped[::-1]))
    assert not isinstance(refused.value, KeyUnavailable)
    keyring.disable(previous)
    with pytest.raises(KeyUnavailable):
        rewrap(keyring, blob)
