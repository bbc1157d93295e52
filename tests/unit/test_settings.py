"""Settings: what is wrong is named, with a remedy and never with its value."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.errors import ConfigurationError
from broker.settings import examine, load

PRODUCTION = {
    "PENSTOCK_ENVIRONMENT": "production",
    "PENSTOCK_DATABASE_URL": "postgresql://penstock@db/penstock",
    "PENSTOCK_PUBLIC_URL": "https://vault.example.com",
    "PENSTOCK_KEYRING": "file:/etc/penstock/keyring.json",
}
VALUE = "canary-of-a-value"

WRONG = {
    "PENSTOCK_ENVIRONMENT": VALUE,
    "PENSTOCK_LISTEN": VALUE,
    "PENSTOCK_PUBLIC_URL": f"https://{VALUE}.example.com/path",
    "PENSTOCK_DATABASE_URL": f"mysql://{VALUE}",
    "PENSTOCK_KEYRING": VALUE,
    "PENSTOCK_ALLOWED_ORIGINS": "*",
    "PENSTOCK_ALLOWED_RETURN_TO": f"https://{VALUE}.example.com/?query",
    "PENSTOCK_PROVIDER_HOSTS": VALUE,
    "PENSTOCK_BOOTSTRAP_API_KEY": VALUE,
    "PENSTOCK_LOG": VALUE,
    "PENSTOCK_PROVIDERS_DIR": f"/nowhere/{VALUE}",
    "PENSTOCK_DATABASE_URL_FILE": f"/nowhere/{VALUE}",
    "PENSTOCK_NO_SUCH_SETTING": VALUE,
}


def test_the_defaults_are_those_of_development():
    """With nothing set, a development server listens on loopback and keeps its things under its home."""
    settings = load({})

    assert (settings.host, settings.port) == ("127.0.0.1", 8484)
    assert settings.public_url == "http://127.0.0.1:8484"
    assert settings.keyring == f"file:{settings.home / 'keyring.json'}"
    assert settings.database_url is None
    assert not settings.production


@pytest.mark.parametrize("variable", WRONG)
def test_a_wrong_setting_is_named_with_a_remedy_and_without_its_value(variable: str):
    """The message says which variable, what is wrong and what to do; the value stays out of it."""
    _, problems = examine({variable: WRONG[variable]})

    assert [problem.variable for problem in problems] == [variable]
    assert problems[0].remedy.endswith(".")
    assert VALUE not in str(problems[0])
    with pytest.raises(ConfigurationError, match=variable):
        load({variable: WRONG[variable]})


@pytest.mark.parametrize("variable", ["PENSTOCK_DATABASE_URL", "PENSTOCK_PUBLIC_URL", "PENSTOCK_KEYRING"])
def test_production_insists_on_what_it_cannot_do_without(variable: str):
    """Production without a database, an https address or a keyring does not start."""
    without = {name: value for name, value in PRODUCTION.items() if name != variable}

    assert examine(PRODUCTION)[1] == []
    assert [problem.variable for problem in examine(without)[1]] == [variable]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PENSTOCK_OUTBOUND_ALLOW", "127.0.0.1:9001"),
        ("PENSTOCK_PROVIDER_HOSTS", "github.com=http://127.0.0.1:9001"),
        ("PENSTOCK_FAILPOINT", "lease.after:kill"),
        ("PENSTOCK_PUBLIC_URL", "http://vault.example.com"),
    ],
)
def test_production_refuses_the_conveniences_of_development_by_name(variable: str, value: str):
    """What makes development easy would make production unsafe, so it is refused at start."""
    assert [problem.variable for problem in examine({**PRODUCTION, variable: value})[1]] == [variable]


def test_a_secret_may_come_from_a_file_but_not_from_both(tmp_path: Path):
    """The `_FILE` twin is read and trimmed; with its plain twin beside it nobody knows which is meant."""
    file = tmp_path / "url"
    file.write_text("postgresql://penstock@db/penstock\n")
    settings = load({"PENSTOCK_DATABASE_URL_FILE": str(file)})

    assert settings.database_url is not None
    assert settings.database_url.reveal() == "postgresql://penstock@db/penstock"
    both = {"PENSTOCK_DATABASE_URL": "postgresql://x@y/z", "PENSTOCK_DATABASE_URL_FILE": str(file)}
    assert [problem.variable for problem in examine(both)[1]] == ["PENSTOCK_DATABASE_URL"]


def test_several_problems_are_all_named_at_once():
    """An operator mends everything in one go instead of one start at a time."""
    _, problems = examine({"PENSTOCK_ENVIRONMENT": "production"})

    assert {problem.variable for problem in problems} == {
        "PENSTOCK_PUBLIC_URL",
        "PENSTOCK_DATABASE_URL",
        "PENSTOCK_KEYRING",
    }


def test_an_origin_with_a_trailing_slash_is_the_origin_without():
    """Browsers send an origin without a slash; a list with one would match nothing and say nothing."""
    assert load({"PENSTOCK_ALLOWED_ORIGINS": "https://app.example.com/"}).allowed_origins == (
        "https://app.example.com",
    )
