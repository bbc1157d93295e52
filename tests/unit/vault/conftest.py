"""A keyring in a file of its own, and one binding to seal for."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.vault.keyring import FileKeyring
from broker.vault.seal import Binding


@pytest.fixture
def keyring(tmp_path: Path) -> FileKeyring:
    return FileKeyring.create(tmp_path / "keyring.json")


@pytest.fixture
def binding() -> Binding:
    return Binding(
        deployment_id="dep-1",
        environment_id="tenant-a",
        connection_id="grant-1",
        owner_id="user-1",
        integration_id="pc-1",
        secret_kind="token_set",
        version_no=7,
    )
