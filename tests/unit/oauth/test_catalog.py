"""The catalog refuses what it cannot vouch for, and says which key of which file."""

from __future__ import annotations

import re
from datetime import date, timedelta
from pathlib import Path

import pytest

import broker
from broker.errors import DescriptorError
from broker.oauth.catalog import Catalog, load_catalog
from broker.oauth.model import NO_EXPIRY, ProviderDescriptor, Rotation
from broker.oauth.schema import dotted_keys

HEAD = """\
# https://docs.acme.example/oauth
display_name = "Acme"
authorization_endpoint = "https://acme.example/authorize"
token_endpoint = "https://acme.example/token"
token_endpoint_auth_method = "client_secret_basic"
"""
DOCS = """
[docs]
setup_url = "https://acme.example/apps"
sources = ["https://docs.acme.example/oauth"]
verified_at = 2026-11-20
"""


def load(directory: Path, **files: str) -> Catalog:
    """Write descriptors into an operator's directory and load it; a name's underscores become hyphens."""
    for name, text in files.items():
        (directory / f"{name.replace('_', '-')}.toml").write_text(text, encoding="utf-8")
    return load_catalog(directory)


def loaded(directory: Path, tables: str = "", *, head: str = HEAD) -> ProviderDescriptor:
    descriptor = load(directory, acme=head + tables + DOCS).get("acme")
    assert descriptor is not None
    return descriptor


def refusal(directory: Path, tables: str = "", *, head: str = HEAD, docs: str = DOCS) -> str:
    with pytest.raises(DescriptorError) as refused:
        load(directory, acme=head + tables + docs)
    return str(refused.value)


# --- what ships ---------------------------------------------------------------------------------------------------


async def test_the_shipped_catalog_loads() -> None:
    catalog = load_catalog()

    assert catalog.slugs == (
        "github",
        "github-app",
        "google",
        "microsoft",
        "salesforce",
        "salesforce-sandbox",
        "slack",
    )
    assert [descriptor.slug for descriptor in catalog] == list(catalog.slugs)
    assert catalog.get("no-such-provider") is None


async def test_every_shipped_descriptor_dates_its_facts() -> None:
    for descriptor in load_catalog():
        assert descriptor.docs.verified_at is not None, descriptor.slug
        assert descriptor.docs.verified_at >= date(2026, 11, 20), descriptor.slug


async def test_githubs_facts_are_read_as_written() -> None:
    github = load_catalog().get("github")
    assert github is not None

    assert github.rotation.rotation_class == "R4"
    assert github.rotation.access_token_ttl == NO_EXPIRY
    assert github.rotation.refresh_token_idle_ttl == timedelta(days=184)
    assert github.errors.dead == ("bad_refresh_token", "invalid_grant")
    assert github.quirks.granted_scope_separator == ","
    assert github.scopes["repo"].scope_class == "write"


# --- files --------------------------------------------------------------------------------------------------------


async def test_an_operator_adds_a_provider(tmp_path: Path) -> None:
    assert "acme" in load(tmp_path, acme=HEAD + DOCS).slugs


async def test_an_operators_file_cannot_shadow_ours(tmp_path: Path) -> None:
    with pytest.raises(DescriptorError, match=r"github\.toml would shadow"):
        load(tmp_path, github=HEAD + DOCS)


async def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DescriptorError, match="not a directory"):
        load_catalog(tmp_path / "missing")


@pytest.mark.parametrize("name", ["finish", "Acme", "-acme", "acme.io"])
async def test_a_slug_is_kebab_case_and_not_reserved(tmp_path: Path, name: str) -> None:
    with pytest.raises(DescriptorError, match=re.escape(f"{name}.toml")):
        load(tmp_path, **{name: HEAD + DOCS})


async def test_the_first_line_names_the_documentation(tmp_path: Path) -> None:
    assert "first line" in refusal(tmp_path, head=HEAD.split("\n", 1)[1])


@pytest.mark.parametrize("text", ["# https://x.example\ndisplay_name = ", "# https://x.example\n\ufeff"])
async def test_a_file_that_is_not_toml_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(DescriptorError, match=r"acme\.toml"):
        load(tmp_path, acme=text)


# --- keys ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tables", "named"),
    [
        ('tokn_endpoint = "https://x.example"', "tokn_endpoint is not a descriptor key; did you mean token_endpoint?"),
        ("[quirk]\n", "quirk is not a descriptor key; did you mean quirks?"),
        ('[quirks]\nscope_seperator = ","', "quirks.scope_seperator is not a descriptor key; did you mean scope_separ"),
        ('[quirks.exchange]\nendpoint = "x"\nparm = "y"', "quirks.exchange.parm is not a descriptor key; did you mean"),
        ('[scopes.read]\ndescription = "d"\nclas = "read"', "scopes.read.clas is not a descriptor key; did you mean c"),
        ('[[errors.match]]\nclass = "dead"\nstaus = 400', "errors.match[0].staus is not a descriptor key; did you mea"),
        ('slug = "other"', "slug is not a descriptor key"),
        ('[errors]\npredicate = "ok"', "errors.predicate is a table"),
    ],
)
async def test_an_unknown_key_is_refused_with_the_nearest_known_name(tmp_path: Path, tables: str, named: str) -> None:
    message = refusal(tmp_path, tables)

    assert message.startswith("acme.toml: ")
    assert named in message


@pytest.mark.parametrize(
    ("tables", "named"),
    [
        ('[rotation]\nclass = "R9"', "R9"),
        ('[quirks]\nscope_separator = ["a"]', "quirks.scope_separator"),
        ('code_challenge_methods_supported = ["plain"]', "code_challenge_methods_supported"),
        ('[rotation]\nclass = "R3"\nreuse_grace = 30', "rotation.reuse_grace is not a duration"),
        ('[rotation]\nclass = "R3"\nreuse_grace = "30 minutes"', "rotation.reuse_grace is not a duration"),
        ('extends = ["github"]', "extends"),
    ],
)
async def test_a_value_of_the_wrong_kind_is_refused(tmp_path: Path, tables: str, named: str) -> None:
    assert named in refusal(tmp_path, tables)


@pytest.mark.parametrize(
    ("key", "docs"),
    [
        ("docs.verified_at", DOCS.replace("verified_at = 2026-11-20", "")),
        ("docs.sources", DOCS.replace('sources = ["https://docs.acme.example/oauth"]', "")),
        ("docs.setup_url", DOCS.replace('setup_url = "https://acme.example/apps"', "")),
        ("docs.sources", DOCS.replace("https://docs.acme", "http://docs.acme")),
        ("docs.unverified", DOCS + 'unverified = ["rotation.clas"]'),
    ],
)
async def test_facts_without_a_source_are_refused(tmp_path: Path, key: str, docs: str) -> None:
    assert key in refusal(tmp_path, docs=docs)


async def test_the_client_authentication_method_is_never_guessed(tmp_path: Path) -> None:
    """A wrong guess burns a one-time code or rotates a token, so the file has to say it."""
    head = HEAD.replace('token_endpoint_auth_method = "client_secret_basic"\n', "")

    assert "token_endpoint_auth_method" in refusal(tmp_path, head=head)


# --- rules --------------------------------------------------------------------------------------------------------

FIELD = '[config.sub]\npattern = "[a-z]+"\n'
SOURCE = '[metadata.org]\nfrom = "token:/org"\n'


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        ('token_endpoint_auth_methods_supported = ["none"]', "not among token_endpoint_auth_methods_supported"),
        ('grant_types_supported = ["refresh_token"]', "lacks authorization_code"),
        ("authorization_response_iss_parameter_supported = true", "needs an issuer"),
        ("code_challenge_methods_supported = []", "needs its reason"),
        ('revocation_endpoint = "http://acme.example/revoke"', "revocation_endpoint must be https"),
        ('introspection_endpoint = "https://{config.host}/i"', "introspection_endpoint"),
        ('[quirks]\nauthorization_params = { state = "x" }', "authorization_params may not set state"),
        ('[quirks]\ntoken_params = { grant_type = "password" }', "token_params may not set grant_type"),
        ('[quirks]\nrefresh_params = { refresh_token = "x" }', "refresh_params may not set refresh_token"),
        ('[quirks]\nauthorization_params = { a = "{config.nope}" }', "quirks.authorization_params.a"),
        ('[quirks]\ntoken_headers = { a = "{confg.nope" }', "quirks.token_headers.a"),
        ('[quirks]\nomit_params = ["code_verifier"]', "omit_params may not drop code_verifier"),
        ('[quirks]\nparam_names = { client_id = "id", code = "id" }', "two parameters the same name"),
        ('[quirks]\ngranted_scope_from = "guess"', "granted_scope_from"),
        ('[quirks]\nexpiry_from = "introspection"', "needs an introspection_endpoint"),
        ("[quirks]\nresponse_formats = []", "response_formats is empty"),
        ('[quirks]\nresponse_map = { access_token = "token" }', "response_map.access_token is not a JSON pointer"),
        ('[quirks]\nresponse_map = { acces_token = "/token" }', "response_map.acces_token"),
        ("[quirks]\nauthorization_in_fragment = true", "authorization_in_fragment"),
        ('[rotation]\nclass = "R3"', "R3 needs reuse_grace"),
        ("[rotation]\ncount_limit = -1", "count_limit is negative"),
        ('[errors]\ndead = ["gone"]\nbusy = ["gone"]', "gone stands in more than one list"),
        ('[[errors.match]]\nclass = "dead"', "errors.match[0] has no condition"),
        ('[errors]\npredicate = { pointer = "/ok" }', "errors.predicate needs either"),
        ('[errors]\npredicate = { pointer = "/~2", absent = true }', "errors.predicate.pointer"),
        ("[config.sub]\n", "config.sub needs a pattern or an enum"),
        (FIELD.replace("[a-z]+", "[a-z"), "config.sub has a pattern that does not compile"),
        (FIELD.replace("[a-z]+", "a" * 256), "more than 255 characters"),
        (FIELD + 'use = "host"', "config.sub needs a hosts list"),
        (FIELD + 'use = "host"\nhosts = ["*"]', "leaves the whole host to the user"),
        (FIELD + 'use = "url"\nhosts = [".acme.example"]', "leaves the whole host to the user"),
        (FIELD + 'use = "host"\nhosts = ["*.acme.example"]', "host rule '*.acme.example'"),
        (FIELD + 'default = "X"', "config.sub has a default that does not have the expected form"),
        (FIELD + "secret = true\nuse = 'path'", "config.sub is secret"),
        (SOURCE.replace("token:/org", "body:/org"), "metadata.org has a from"),
        (SOURCE.replace("token:/org", "account:/org"), "account that is never looked up"),
        (SOURCE + 'kind = "origin"', "metadata.org needs a hosts list"),
        (SOURCE.replace("token:/org", "callback:org"), "needs a pattern"),
        (SOURCE.replace("token:/org", "callback:org") + 'pattern = "[0-9]+"', "metadata.org comes from the callback"),
        (
            SOURCE.replace("token:/org", "callback:site") + 'kind = "host"\nhosts = [".acme.example"]',
            "name them exactly",
        ),
        ('[account]\nsource = "request"', "needs account.endpoint"),
        ('[account]\nsource = "id_token"', "needs jwks_uri"),
        ('[account]\nchoose = "best"', "account.choose"),
        ('[account]\nid = "sub"', "account.id is not a JSON pointer"),
        ('[revocation]\nstyle = "request"', "needs revocation.endpoint"),
        ('[revocation]\nstyle = "rfc7009"', "needs revocation_endpoint"),
        ('[revocation]\nendpoint = "https://acme.example/r"', "RFC 7009 has revocation_endpoint"),
        ('userinfo_endpoint = "https://id.acme.example/me"', "would send a token to id.acme.example"),
        (
            '[revocation]\nstyle = "request"\nendpoint = "https://other.example/r"',
            "revocation.endpoint would send a token to other.example",
        ),
        (
            '[quirks.exchange]\nendpoint = "https://other.example/x"',
            "quirks.exchange.endpoint would send a token to other.example",
        ),
        ('[account]\nchoose = "ask"', "account.choose"),
        ('[api]\nallowed_hosts = ["acme"]', "api.allowed_hosts has the host rule 'acme'"),
        ('[scopes.read]\ndescription = ""\nclass = "read"', "scopes.read.description is empty"),
        ('[scopes.a]\ndescription = "A"\nclass = "read"\nimplies = ["b"]', "implies names b"),
        ('[scopes.a]\ndescription = "A"\nclass = "everything"', "scopes"),
    ],
)
async def test_a_rule_that_is_broken_is_named(tmp_path: Path, tables: str, problem: str) -> None:
    message = refusal(tmp_path, tables)

    assert message.startswith("acme.toml: ")
    assert problem in message


async def test_a_secret_field_never_stands_in_a_url(tmp_path: Path) -> None:
    tables = (
        'revocation_endpoint = "https://acme.example/revoke?key={config.key}"\n'
        '[config.key]\npattern = ".+"\nsecret = true\n'
    )

    assert "revocation_endpoint would put a secret field into a URL" in refusal(tmp_path, tables)


async def test_a_templated_account_host_must_be_allowed_whatever_the_user_types(tmp_path: Path) -> None:
    tables = (
        'userinfo_endpoint = "https://{config.sub}.acme.example/me"\n'
        + FIELD
        + 'use = "label"\n[api]\nallowed_hosts = ["api.acme.example"]\n'
    )

    assert "would send a token to .acme.example" in refusal(tmp_path, tables)
    assert loaded(tmp_path, tables.replace('"api.acme.example"', '".acme.example"')).account.source == "userinfo"


async def test_a_callback_value_that_the_exchange_proves_needs_no_confirmation(tmp_path: Path) -> None:
    head = HEAD.replace("acme.example/token", "acme.example/{callback.install}/token")
    tables = '[metadata.install]\nfrom = "callback:install"\npattern = "[0-9a-f-]{36}"\n'

    assert loaded(tmp_path, tables, head=head).metadata["install"].confirm is None


# --- inheritance --------------------------------------------------------------------------------------------------


async def test_a_descriptor_extends_another_key_by_key(tmp_path: Path) -> None:
    base = HEAD + '[quirks]\nscope_separator = ","\nauthorization_params = { prompt = "consent", lang = "en" }\n'
    base += '[rotation]\nclass = "R3"\nreuse_grace = "30m"\n' + FIELD + 'label = "Sub"\n' + DOCS
    child = '# https://docs.acme.example/b\nextends = "acme"\ndisplay_name = "Acme B"\n'
    child += '[quirks]\nauthorization_params = { lang = "" }\n[config.sub]\npattern = "[0-9]+"\n'

    extended = load(tmp_path, acme=base, acme_b=child).get("acme-b")

    assert extended is not None
    assert extended.display_name == "Acme B"
    assert extended.token_endpoint == "https://acme.example/token"
    assert extended.quirks.scope_separator == ","
    assert extended.quirks.authorization_params == {"prompt": "consent"}
    assert extended.rotation.reuse_grace == timedelta(minutes=30)
    assert (extended.config["sub"].label, extended.config["sub"].pattern) == ("Sub", "[0-9]+")


@pytest.mark.parametrize("empty", ['revocation_endpoint = ""', "[config]", "config = {}"])
async def test_an_inherited_key_is_removed_by_an_empty_value(tmp_path: Path, empty: str) -> None:
    base = HEAD + 'revocation_endpoint = "https://acme.example/revoke"\n' + FIELD + DOCS
    child = f'# https://docs.acme.example/b\nextends = "acme"\n{empty}\n'

    extended = load(tmp_path, acme=base, acme_b=child).get("acme-b")

    assert extended is not None
    if "revocation" in empty:
        assert extended.revocation_endpoint is None
        assert extended.revocation.style == "none"
    else:
        assert extended.config == {}


async def test_an_inherited_duration_can_become_no_expiry(tmp_path: Path) -> None:
    """For a duration "" is a fact, not a removal: this provider states that there is no expiry."""
    base = HEAD + '[rotation]\naccess_token_ttl = "8h"\n' + DOCS
    child = '# https://docs.acme.example/b\nextends = "acme"\n[rotation]\naccess_token_ttl = ""\n'

    extended = load(tmp_path, acme=base, acme_b=child).get("acme-b")

    assert extended is not None
    assert extended.rotation.access_token_ttl == NO_EXPIRY


@pytest.mark.parametrize(("parent", "problem"), [("github-app", "one level"), ("githb", "not a descriptor")])
async def test_inheritance_is_one_level_deep(tmp_path: Path, parent: str, problem: str) -> None:
    with pytest.raises(DescriptorError, match=problem):
        load(tmp_path, acme=f'# https://docs.acme.example\nextends = "{parent}"\n')


async def test_github_app_keeps_githubs_endpoints_and_drops_its_scopes() -> None:
    app = load_catalog().get("github-app")
    assert app is not None

    assert app.token_endpoint == "https://github.com/login/oauth/access_token"
    assert app.scopes == {}
    assert app.quirks.omit_params == ("scope",)


# --- defaults that depend on another key --------------------------------------------------------------------------


async def test_an_undocumented_provider_is_run_by_the_strictest_rules(tmp_path: Path) -> None:
    rotation = loaded(tmp_path).rotation

    assert rotation.effective_class == "R5"
    assert rotation.kills_old_access_token is True
    assert rotation.server_error == "in_doubt"
    assert rotation == Rotation()


@pytest.mark.parametrize(
    ("written", "effective", "kills", "server_error"),
    [
        ('class = "R0"', "R0", False, "retry"),
        ('class = "R2"', "R2", False, "retry"),
        ('class = "R3"\nreuse_grace = "5m"', "R3", False, "retry"),
        ('class = "R3"\nreuse_grace = "299s"', "R5", True, "in_doubt"),
        ('class = "R4"', "R4", True, "in_doubt"),
        ('class = "R4"\nkills_old_access_token = false', "R4", False, "in_doubt"),
        ('class = "R0"\nserver_error = "in_doubt"', "R0", False, "in_doubt"),
    ],
)
async def test_the_rotation_class_decides_what_is_not_written(
    tmp_path: Path, written: str, effective: str, kills: bool, server_error: str
) -> None:
    rotation = loaded(tmp_path, f"[rotation]\n{written}\n").rotation

    assert rotation.effective_class == effective
    assert rotation.kills_old_access_token is kills
    assert rotation.server_error == server_error


async def test_what_follows_from_another_key_is_filled_in(tmp_path: Path) -> None:
    tables = """
revocation_endpoint = "https://acme.example/revoke"
userinfo_endpoint = "https://api.acme.example/me"
[quirks]
scope_separator = ","
token_request_format = "json"
[api]
base_url = "https://api.acme.example/v2"
[config.region]
enum = ["eu", "us"]
"""
    acme = loaded(tmp_path, tables)

    assert acme.quirks.granted_scope_separator == ","
    assert acme.quirks.refresh_request_format == "json"
    assert acme.account.source == "userinfo"
    assert acme.revocation.style == "rfc7009"
    assert acme.api.allowed_hosts == ("api.acme.example",)
    assert acme.config["region"].label == "region"
    assert acme.config["region"].enum == {"eu": "eu", "us": "us"}


# --- the schema and its readers -----------------------------------------------------------------------------------


# Facts that people read and the README explains; nothing acts on them.
FOR_PEOPLE = {
    "docs",
    "docs.setup_url",
    "docs.sources",
    "docs.verified_at",
    "docs.unverified",
    "docs.notes",
    "token_endpoint_auth_methods_supported",
    "rotation.count_limit",
    "rotation.needs_fixed_egress",
    "revocation.effect",
    "revocation.removal_url",
    "api.base_url",
}


def test_every_key_has_a_reader() -> None:
    """A key that no code reads is a promise to whoever writes it into a file; the schema may hold none."""
    loaders = {"schema.py", "catalog.py", "checks.py"}
    sources = [path for path in Path(broker.__path__[0]).rglob("*.py") if path.name not in loaders]
    readers = "".join(path.read_text(encoding="utf-8") for path in sources)

    unread = {key for key, field in dotted_keys() if not re.search(rf"\.{field.name}\b", readers)}

    assert unread - FOR_PEOPLE == set()
    assert FOR_PEOPLE - {key for key, _ in dotted_keys()} == set()
