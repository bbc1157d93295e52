"""The keyring: key versions and their states, digests for lookups, and what other processes change."""

from __future__ import annotations

import base64
import hmac
import json
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from broker.errors import ConfigurationError, InvalidState, KeyUnavailable, NotFound, VaultError
from broker.secret import Secret
from broker.vault.keyring import FileKeyring, hkdf_expand, hkdf_extract

DEK = bytes(range(32))


def lookup_keys(keyring: FileKeyring) -> dict[str, bytes]:
    lookup = json.loads(keyring.path.read_text())["lookup"]
    return {name: base64.b64decode(key) for name, key in lookup.items()}


# --- key versions -----------------------------------------------------------------------------------------------


def test_rotation_wraps_under_the_new_version_and_opens_under_the_old(keyring):
    first = keyring.primary_ref
    wrapped, ref = keyring.wrap(DEK)

    new, previous = keyring.rotate()

    assert (ref, previous) == (first, first)
    assert keyring.primary_ref == new != first
    assert keyring.wrap(DEK)[1] == new
    assert keyring.unwrap(wrapped, first) == DEK


def test_versions_are_listed_with_state_and_time(keyring):
    """Operators see reference, state and creation time of every version, oldest first."""
    later = datetime(2027, 1, 1, tzinfo=UTC)
    rotating = FileKeyring(keyring.path, now=lambda: later)
    new, previous = rotating.rotate()
    first, second = rotating.versions

    assert (first.ref, first.state, second.ref, second.state) == (previous, "enabled", new, "primary")
    assert first.created_at < second.created_at == later


def test_a_disabled_version_opens_nothing_until_it_is_enabled(keyring):
    wrapped, ref = keyring.wrap(DEK)
    keyring.rotate()

    keyring.disable(ref)
    with pytest.raises(KeyUnavailable):
        keyring.unwrap(wrapped, ref)

    keyring.enable(ref)
    assert keyring.unwrap(wrapped, ref) == DEK
    assert keyring.primary_ref != ref


def test_a_destroyed_version_is_gone_for_good(keyring):
    """Its key leaves the file, its number is never given again, and enabling it is refused."""
    wrapped, ref = keyring.wrap(DEK)
    keyring.rotate()
    keyring.disable(ref)
    key = json.loads(keyring.path.read_text())["versions"][0]["key"]

    keyring.destroy(ref)

    assert key not in keyring.path.read_text()
    with pytest.raises(KeyUnavailable):
        keyring.unwrap(wrapped, ref)
    with pytest.raises(InvalidState):
        keyring.enable(ref)
    assert keyring.rotate()[0] != ref


def test_an_unknown_version_is_unavailable(keyring):
    wrapped, ref = keyring.wrap(DEK)

    for unknown in (ref + "0", ref.replace("local", "remote"), ""):
        with pytest.raises(KeyUnavailable):
            keyring.unwrap(wrapped, unknown)


def test_a_damaged_wrapped_key_is_refused(keyring):
    wrapped, ref = keyring.wrap(DEK)

    for damaged in (b"", wrapped[:-1], wrapped[:-8], wrapped + bytes(8), wrapped[::-1], bytes(40)):
        with pytest.raises(VaultError):
            keyring.unwrap(damaged, ref)


def test_states_change_in_the_permitted_order_only(keyring):
    """Neither the primary version nor an enabled one can be lost by a single mistake."""
    first = keyring.primary_ref
    with pytest.raises(InvalidState, match="Rotate"):
        keyring.disable(first)
    with pytest.raises(InvalidState):
        keyring.enable(first)
    keyring.rotate()
    with pytest.raises(InvalidState, match="Disable it first"):
        keyring.destroy(first)
    with pytest.raises(NotFound):
        keyring.disable("local:kek-a:9")
    assert [version.state for version in keyring.versions] == ["enabled", "primary"]


# --- lookups ----------------------------------------------------------------------------------------------------


def test_lookups_outlive_every_key_rotation(keyring):
    """Digests are found again after rotation, disabling and destruction of the keys that seal."""

    def lookups() -> tuple[bytes, bytes, str]:
        return keyring.api_key_digest("sk_1"), keyring.fingerprint("env-1", "rt-1"), keyring.token_id("conn-1", 7)

    before = lookups()
    _, previous = keyring.rotate()
    keyring.disable(previous)
    keyring.destroy(previous)

    assert lookups() == before


def test_lookups_are_the_digests_they_are_described_as(keyring):
    """Stored digests depend on these exact computations; a change of one would lose every row."""
    keys = lookup_keys(keyring)
    per_environment = HKDF(SHA256(), 32, salt=None, info=b"penstock fingerprint env-1").derive(keys["fingerprint"])
    identity = hmac.digest(keys["token_id"], (7).to_bytes(8, "big") + b"conn-1", "sha256")[:15]

    assert keyring.api_key_digest("sk_1") == hmac.digest(keys["api_key"], b"sk_1", "sha256")
    assert keyring.fingerprint("env-1", "rt-1") == hmac.digest(per_environment, b"rt-1", "sha256")
    assert keyring.token_id("conn-1", 7) == "tok_" + identity.hex()


def test_lookups_differ_with_each_of_their_parts(keyring, tmp_path):
    other = FileKeyring.create(tmp_path / "other.json")

    fingerprints = [
        ring.fingerprint(env, rt) for ring in (keyring, other) for env in ("env-1", "env-2") for rt in ("a", "b")
    ]
    tokens = [ring.token_id(conn, no) for ring in (keyring, other) for conn in ("c-1", "c-2") for no in (1, 2)]
    digests = [ring.api_key_digest(key) for ring in (keyring, other) for key in ("sk_1", "sk_2")]

    for found in (fingerprints, tokens, digests):
        assert len(set(found)) == len(found)


def test_a_secret_and_its_text_have_one_digest(keyring):
    assert keyring.api_key_digest(Secret("sk_1")) == keyring.api_key_digest("sk_1")
    assert keyring.fingerprint("env-1", Secret("rt-1")) == keyring.fingerprint("env-1", "rt-1")


@given(key=st.binary(min_size=1, max_size=64), info=st.binary(max_size=64))
def test_hkdf_is_rfc_5869(key, info):
    """Our one-shot derivation equals cryptography's HKDF without salt."""
    assert hkdf_expand(hkdf_extract(key), info) == HKDF(SHA256(), 32, salt=None, info=info).derive(key)


# --- following another process ----------------------------------------------------------------------------------


class Clock:
    """A monotonic clock that stands still until told."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_another_process_rotation_is_used_within_a_second(keyring):
    """The file is looked at once a second, not once per call."""
    clock = Clock()
    follower = FileKeyring(keyring.path, monotonic=clock)
    new, previous = keyring.rotate()

    clock.seconds += 0.9
    assert follower.primary_ref == previous
    clock.seconds += 0.2
    assert follower.primary_ref == new
    assert follower.wrap(DEK)[1] == new


def test_an_unknown_version_is_looked_for_at_once(keyring):
    """A blob sealed by another process a moment ago opens without waiting for the next look at the file."""
    follower = FileKeyring(keyring.path, monotonic=Clock())
    keyring.rotate()
    wrapped, ref = keyring.wrap(DEK)

    assert follower.unwrap(wrapped, ref) == DEK


def test_a_version_disabled_elsewhere_stops_within_a_second(keyring):
    clock = Clock()
    wrapped, ref = keyring.wrap(DEK)
    follower = FileKeyring(keyring.path, monotonic=clock)
    keyring.rotate()
    keyring.disable(ref)

    clock.seconds += 1.1
    with pytest.raises(KeyUnavailable):
        follower.unwrap(wrapped, ref)


@pytest.mark.parametrize("loss", ["removed", "damaged"])
def test_a_lost_file_leaves_the_keys_in_use_and_one_warning(keyring, loss):
    """A mistake with the file at noon does not cut every user off; readiness and the next start report it."""
    clock = Clock()
    follower = FileKeyring(keyring.path, monotonic=clock)
    wrapped, ref = follower.wrap(DEK)
    if loss == "removed":
        keyring.path.unlink()
    else:
        keyring.path.write_bytes(b"{}")

    with capture_logs() as logs:
        for _ in range(3):
            clock.seconds += 1.1
            assert follower.unwrap(wrapped, ref) == DEK

    assert [entry["event"] for entry in logs] == ["keyring_unreadable"]
    with pytest.raises(ConfigurationError):
        follower.reload()


def test_a_keyring_is_followed_again_when_it_comes_back(keyring):
    clock = Clock()
    follower = FileKeyring(keyring.path, monotonic=clock)
    keyring.rotate()
    away = keyring.path.rename(keyring.path.with_suffix(".away"))
    clock.seconds += 1.1
    before = follower.primary_ref

    away.rename(keyring.path)
    clock.seconds += 1.1

    assert follower.primary_ref == keyring.primary_ref != before
