"""The pages a browser sees at an emulated provider."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from providers.emulator.clients import Client
from providers.emulator.http import Answer, text_answer
from providers.emulator.people import PEOPLE
from providers.emulator.provider import Provider

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def consent(provider: Provider, client: Client, scopes: Sequence[str]) -> Answer:
    """Show what the application asks for, and let one of the people approve or deny."""
    known = provider.descriptor.scopes
    lines = [(scope, known[scope].description if scope in known else "") for scope in scopes]
    return _page("consent.html", provider, client=client, scopes=lines, people=PEOPLE, chosen=provider.knobs.user)


def refused(provider: Provider, reason: str) -> Answer:
    """Tell the person why nobody is redirected (RFC 6749 §4.1.2.1)."""
    return _page("refused.html", provider, status=400, reason=reason)


def fragment(provider: Provider) -> Answer:
    """Move the authorization request from the fragment, which no server sees, into the URL."""
    return _page("fragment.html", provider)


def _page(template: str, provider: Provider, *, status: int = 200, **values: object) -> Answer:
    text = _TEMPLATES.get_template(template).render(name=provider.descriptor.display_name, **values)
    return text_answer(text, status, "text/html")
