"""The keyring file: who may read it, what is refused, and that each change of it is durable."""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker.errors import ConfigurationError
from broker.vault import keyfile
from broker.vault.keyring import FileKeyring, open_keyring


def content(keyring: FileKeyring) -> Any:
    return json.loads(keyring.path.read_text())


def rewrite(keyring: FileKeyring, change: Callable[[Any], None]) -> None:
    edited = content(keyring)
    change(edited)
    keyring.path.write_text(json.dumps(edited))


def test_development_makes_a_private_keyring_once(tmp_path):
    """The first start creates file and directory for this user alone; the second finds the same keys."""
    path = tmp_path / "home" / "keyring.json"

    first = open_keyring(f"file:{path}", production=False)
    second = open_keyring(f"file:{path}", production=False)

    assert first.primary_ref == second.primary_ref
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_rotated_keyring_stays_private(keyring):
    """Every rewrite is 0600, whatever the umask, and leaves no copy of a key beside it."""
    previous = os.umask(0)
    try:
        keyring.rotate()
    finally:
        os.umask(previous)

    assert stat.S_IMODE(keyring.path.stat().st_mode) == 0o600
    assert {entry.name for entry in keyring.path.parent.iterdir()} == {"keyring.json", "keyring.json.lock"}


def test_a_new_version_is_durable_before_any_process_can_seal_with_it(keyring, monkeypatch):
    """Even a power cut cannot lose a key that sealed something: file, then directory, and primary only after both."""
    steps: list[str] = []
    replace, fsync = os.replace, os.fsync

    def replaced(source: Path, target: Path) -> None:
        states = [version["state"] for version in json.loads(source.read_text())["versions"]]
        steps.append(" ".join(states))
        replace(source, target)

    def synced(descriptor: int) -> None:
        steps.append("sync directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        fsync(descriptor)

    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(os, "fsync", synced)
    keyring.rotate()

    assert steps == [
        *("sync file", "primary enabled", "sync directory"),
        *("sync file", "enabled primary", "sync directory"),
    ]


def test_production_never_makes_a_keyring(tmp_path):
    """A fresh keyring would open nothing that is stored, so a missing one stops the start and says what to do."""
    with pytest.raises(ConfigurationError, match="penstock keys new") as refused:
        open_keyring(f"file:{tmp_path / 'keyring.json'}", production=True)

    assert refused.value.variable == "PENSTOCK_KEYRING"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_production_refuses_a_keyring_others_may_access(keyring, mode):
    keyring.path.chmod(mode)

    with pytest.raises(ConfigurationError, match="chmod 600"):
        open_keyring(f"file:{keyring.path}", production=True)
    assert open_keyring(f"file:{keyring.path}", production=False).primary_ref == keyring.primary_ref


def test_production_opens_and_rotates_a_private_keyring(keyring):
    opened = open_keyring(f"file:{keyring.path}", production=True)

    assert opened.rotate()[1] == keyring.primary_ref


@pytest.mark.parametrize("setting", ["", "file:", "keyring.json", "vault:transit/penstock", "FILE:/keyring.json"])
def test_a_setting_of_another_kind_is_refused(setting):
    with pytest.raises(ConfigurationError, match="file:/path"):
        open_keyring(setting, production=False)


def test_creating_over_a_keyring_is_refused(keyring):
    before = keyring.path.read_bytes()

    with pytest.raises(ConfigurationError, match="lose every secret"):
        FileKeyring.create(keyring.path)
    assert keyring.path.read_bytes() == before


def test_a_directory_that_cannot_be_written_is_explained(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(ConfigurationError, match="write access"):
        FileKeyring.create(tmp_path / "file" / "keyring.json")


def test_a_keyring_behind_a_link_is_rewritten_where_it_is(keyring, tmp_path):
    """Mounted secrets are links: rotation changes the file, and the link stays a link."""
    link = tmp_path / "link.json"
    link.symlink_to(keyring.path)

    new, _ = FileKeyring.open(link).rotate()

    assert link.is_symlink()
    assert FileKeyring.open(keyring.path).primary_ref == new


_DAMAGE: dict[str, Callable[[Any], None]] = {
    "unknown format": lambda file: file.update(format=2),
    "unknown field": lambda file: file.update(comment="mine"),
    "unknown state": lambda file: file["versions"][0].update(state="retired"),
    "no primary": lambda file: file["versions"][1].update(state="enabled"),
    "two primaries": lambda file: file["versions"][0].update(state="primary"),
    "equal numbers": lambda file: file["versions"][0].update(number=2),
    "short key": lambda file: file["versions"][0].update(key=base64.b64encode(bytes(31)).decode()),
    "no base 64": lambda file: file["versions"][0].update(key="~" * 44),
    "key that is no text": lambda file: file["versions"][0].update(key=1),
    "enabled without key": lambda file: file["versions"][0].update(key=None),
    "time without zone": lambda file: file["versions"][0].update(created_at="2026-11-20T12:00:00"),
    "short lookup key": lambda file: file["lookup"].update(token_id=""),
    "key id with a colon": lambda file: file.update(key_id="kek:a"),
}


@pytest.mark.parametrize("damage", _DAMAGE)
def test_a_damaged_keyring_is_refused_without_its_contents(keyring, damage):
    """A file that is not exactly a keyring stops the start; no key appears in what is said about it."""
    keyring.rotate()
    rewrite(keyring, _DAMAGE[damage])

    with pytest.raises(ConfigurationError, match="no valid keyring") as refused:
        FileKeyring.open(keyring.path)

    said = f"{refused.value} {refused.value.__cause__}"
    assert not any(str(version["key"]) in said for version in content(keyring)["versions"] if version["key"])


def test_an_empty_or_cut_file_is_refused(keyring):
    whole = keyring.path.read_bytes()

    for size in (0, 1, len(whole) // 2, len(whole) - 2):
        keyring.path.write_bytes(whole[:size])
        with pytest.raises(ConfigurationError, match="no valid keyring"):
            FileKeyring.open(keyring.path)


def test_nothing_prints_a_key(keyring):
    """Neither the keyring, its versions nor the decoded file shows key material, however it is printed."""
    file = content(keyring)
    keys = [file["versions"][0]["key"], *file["lookup"].values()]
    decoded, _ = keyfile.read(keyring.path, private=False)

    shown = " ".join(
        form(value)
        for value in (decoded, keyring, keyring.versions, *vars(keyring).values())
        for form in (repr, str, "{}".format)
    )

    assert keyring.primary_ref in shown
    for key in keys:
        assert key not in shown
        assert repr(base64.b64decode(key))[2:-1] not in shown
