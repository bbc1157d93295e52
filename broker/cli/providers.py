"""`penstock providers`: the catalog in plain words, and how sure its facts are."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import rich_click as click

from broker.cli.common import as_json as json_option
from broker.cli.common import settings
from broker.cli.output import say, show_facts, show_json, show_table
from broker.errors import NotFound
from broker.oauth.catalog import Catalog, load_catalog
from broker.oauth.model import NO_EXPIRY, ProviderDescriptor

OLD = timedelta(days=365)  # facts of this age are looked up again

_ROTATION: Mapping[str, str] = {
    "R0": "a refresh leaves the refresh token as it is",
    "R1": "a refresh brings a new refresh token, and the old one goes on working",
    "R2": "a refresh may be repeated until its result is used",
    "R3": "a refresh brings a new refresh token, and the old one works for a while longer",
    "R4": "a refresh spends the refresh token at once; an answer that is lost costs the connection",
    "R5": "a refresh spends the refresh token at once, and using it again ends the whole grant",
}
_ENDS: Mapping[str, str] = {
    "grant": "the whole grant: consent and every token of it",
    "token": "the token that is sent, and nothing else",
    "tokens": "every token; the consent stays",
}


@click.group()
def providers() -> None:
    """Look at the providers there are."""


@providers.command("list")
@json_option
def list_providers(as_json: bool) -> None:
    """List the providers of the catalog, PENSTOCK_PROVIDERS_DIR included."""
    catalog = _catalog()
    if as_json:
        show_json([_known(descriptor) for descriptor in catalog])
        return
    rows = [
        (each.slug, each.display_name, each.rotation.rotation_class, each.docs.verified_at, len(each.docs.unverified))
        for each in catalog
    ]
    show_table(("slug", "name", "rotation", "looked up", "unverified"), rows)


@providers.command()
@click.argument("slug")
@json_option
def show(slug: str, as_json: bool) -> None:
    """Say what is known of a provider, how sure that is, and what a disconnect ends."""
    descriptor = _find(_catalog(), slug)
    if as_json:
        show_json({**_known(descriptor), "descriptor": descriptor})
        return
    known = _known(descriptor)
    say(f"{known.pop('name')} ({known.pop('slug')})\n")
    unverified, notes = known.pop("unverified"), known.pop("notes")
    for name in ("object", "looked_up"):  # the certainty says when
        del known[name]
    show_facts([(name.replace("_", " "), value) for name, value in known.items()])
    if descriptor.scopes:
        say("")
        rows = [(name, scope.scope_class, scope.description) for name, scope in descriptor.scopes.items()]
        show_table(("scope", "class", "what it allows"), rows)
    for note in notes:
        say(f"\nNote: {note}")
    if unverified:
        say("\nNot verified at the provider yet: " + ", ".join(unverified))


@providers.command()
@click.argument("slug", required=False)
@json_option
def check(slug: str | None, as_json: bool) -> None:
    """Validate descriptors, and list those whose facts are older than a year."""
    catalog = _catalog()  # raises for an invalid one, naming file and key
    chosen = [_find(catalog, slug)] if slug else list(catalog)
    today = datetime.now(UTC).date()
    old = [each for each in chosen if each.docs.verified_at is None or today - each.docs.verified_at > OLD]
    if as_json:
        show_json({"object": "catalog_check", "valid": len(chosen), "old": [each.slug for each in old]})
        return
    say(f"{len(chosen)} {'descriptor is' if len(chosen) == 1 else 'descriptors are'} valid.")
    for each in old:
        say(f"{each.slug}: last looked up {each.docs.verified_at or 'never'}. Read its docs.sources again.")


def _catalog() -> Catalog:
    return load_catalog(settings().providers_dir)


def _find(catalog: Catalog, slug: str) -> ProviderDescriptor:
    found = catalog.get(slug)
    if found is None:
        raise NotFound(f"There is no provider '{slug}'. There are {', '.join(catalog.slugs)}.")
    return found


# --- in plain words ---------------------------------------------------------------------------------------------


def _known(descriptor: ProviderDescriptor) -> dict[str, Any]:
    """Return what an operator wants to know of a provider, as sentences where sentences say it better."""
    docs = descriptor.docs
    return {
        "object": "provider",
        "slug": descriptor.slug,
        "name": descriptor.display_name,
        "description": descriptor.description or None,
        "set_up": docs.setup_url or None,
        "redirect_uri": f"<public URL>/data-integrations/{descriptor.slug}/<key>/callback, one for each integration",
        "needs": _needs(descriptor),
        "pkce": "S256" in descriptor.code_challenge_methods_supported,
        "client_authentication": descriptor.token_endpoint_auth_method,
        "refresh": _refresh(descriptor),
        "access_token": _lifetime(descriptor.rotation.access_token_ttl, "as long as each answer says"),
        "refresh_token_unused": _lifetime(descriptor.rotation.refresh_token_idle_ttl, "not known"),
        "disconnecting": _disconnecting(descriptor),
        "tokens_go_only_to": list(descriptor.api.allowed_hosts),
        "looked_up": docs.verified_at,
        "certainty": _certainty(docs.verified_at, len(docs.unverified)),
        "unverified": list(docs.unverified),
        "notes": list(docs.notes),
    }


def _needs(descriptor: ProviderDescriptor) -> list[str] | None:
    fields = [
        f"{name} ({field.label}; per {field.scope}{'' if field.required else ', optional'})"
        for name, field in descriptor.config.items()
    ]
    return fields or None


def _refresh(descriptor: ProviderDescriptor) -> str:
    rotation = descriptor.rotation
    words = f"{rotation.rotation_class}: {_ROTATION[rotation.rotation_class]}"
    if rotation.effective_class != rotation.rotation_class:
        words += f"; too briefly to rely on, so it is treated as {rotation.effective_class}"
    if rotation.kills_old_access_token:
        words += "; the old access token dies with it"
    return words


def _lifetime(duration: timedelta | None, unknown: str) -> str:
    if duration is None:
        return unknown
    if duration == NO_EXPIRY:
        return "does not expire"
    hours = duration.total_seconds() / 3600
    return f"{hours / 24:g} days" if hours >= 48 else f"{hours:g} hours"


def _disconnecting(descriptor: ProviderDescriptor) -> str:
    revocation = descriptor.revocation
    if revocation.style == "none":
        by_hand = f"; the user can withdraw access at {revocation.removal_url}" if revocation.removal_url else ""
        return f"ends nothing at the provider, which offers no revocation{by_hand}"
    return f"ends {_ENDS[revocation.effect]}"


def _certainty(verified_at: date | None, unverified: int) -> str:
    if verified_at is None:
        return "nobody has looked these facts up"
    if not unverified:
        return f"looked up on {verified_at}; every fact is from its documentation"
    return f"looked up on {verified_at}; not verified yet: {unverified}"
