"""GitHub, OAuth Apps and GitHub Apps: errors with HTTP 200, repositories with paging.

https://docs.github.com/en/apps/oauth-apps/building-oauth-apps/authorizing-oauth-apps
https://docs.github.com/en/rest/repos/repos#list-repositories-for-the-authenticated-user
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlencode

from broker.oauth.model import ProviderDescriptor
from providers.emulator.dialects.base import Dialect, Fault, Issued, Refusal, Resource, Visit
from providers.emulator.http import Answer, json_answer
from providers.emulator.people import Identity, Person

_TROUBLE = "https://docs.github.com/apps/managing-oauth-apps/troubleshooting-"
_REPOSITORIES = ("analytical-engine", "bernoulli", "notes", "compiler", "moth-log", "flow-matic", "dotfiles")
_MOST_PER_PAGE = 100


def _refusal(code: str, description: str, page: str = "oauth-app-access-token-request-errors") -> Refusal:
    uri = f"{_TROUBLE}{page}/#{code.replace('_', '-')}"
    return Refusal(status=200, code=code, description=description, members={"error_uri": uri})


_BAD_CODE = _refusal("bad_verification_code", "The code passed is incorrect or expired.")
_BAD_CLIENT = _refusal("incorrect_client_credentials", "The client_id and/or client_secret passed are incorrect.")


class GitHub(Dialect):
    """Tokens `gho_` of an OAuth App, `ghu_` and `ghr_` of a GitHub App."""

    states_refresh_token_lifetime = True
    refusals: ClassVar[Mapping[Fault, Refusal]] = {
        "bad_code": _BAD_CODE,
        "missing_verifier": _BAD_CODE,
        "bad_verifier": _BAD_CODE,
        "bad_redirect_uri": _refusal(
            "redirect_uri_mismatch", "The redirect_uri MUST match the registered callback URL for this application."
        ),
        "unknown_client": _BAD_CLIENT,
        "bad_client_secret": _BAD_CLIENT,
        "dead_refresh_token": _refusal("bad_refresh_token", "The refresh token passed is incorrect or expired."),
        "malformed": _refusal("invalid_request", "The request is malformed."),
        "unsupported_grant_type": _refusal("unsupported_grant_type", "The grant_type passed is not supported."),
    }
    refresh_token_prefix = "ghr_"

    def __init__(self, descriptor: ProviderDescriptor) -> None:
        super().__init__(descriptor)
        # The permissions of a GitHub App are set on the app, so no scope is ever asked for.
        self.is_app = "scope" in descriptor.quirks.omit_params
        self.access_token_prefix = "ghu_" if self.is_app else "gho_"

    @property
    def access_token_ttl(self) -> timedelta | None:
        return timedelta(hours=8) if self.is_app else super().access_token_ttl

    # --- people -------------------------------------------------------------------------------------------------------

    def identity(self, person: Person) -> Identity:
        return Identity(
            id=str(person.number),
            name=person.login,
            email=person.email,
            tenant_id=person.organization.lower(),
            tenant_name=person.organization,
        )

    def profile(self, person: Person) -> dict[str, Any]:
        return {**_owner(person), "name": person.name, "company": person.organization, "email": person.email}

    def metadata(self, name: str, person: Person) -> str | None:
        return f"4{person.number}" if name == "installation_id" else None

    def callback_members(self, person: Person) -> dict[str, str]:
        return {"setup_action": "install"} if self.is_app else {}

    def confirmed_element(self, name: str, value: str) -> Any:
        return int(value)

    # --- answers ------------------------------------------------------------------------------------------------------

    def stated_scopes(self, scopes: Sequence[str]) -> tuple[str, ...]:
        """Leave out what another granted scope contains, as GitHub does."""
        known = self.descriptor.scopes
        contained = {part for scope in scopes if scope in known for part in known[scope].implies}
        return tuple(scope for scope in scopes if scope not in contained)

    def token_members(self, issued: Issued) -> dict[str, Any]:
        return {"scope": ""} if self.is_app else {}

    def denial(self) -> dict[str, str]:
        return {
            "error": "access_denied",
            "error_description": "The user has denied your application access.",
            "error_uri": f"{_TROUBLE}authorization-request-errors/#access-denied",
        }

    def dead_token(self) -> Answer:
        return _message("Bad credentials", 401)

    def revoked(self) -> Answer:
        return Answer(status=204)

    def nothing_to_revoke(self) -> Answer:
        return _message("Validation Failed", 422)

    # --- the API ------------------------------------------------------------------------------------------------------

    def resources(self) -> Sequence[Resource]:
        return (Resource("GET", "/user/repos", self._repositories),)

    def _repositories(self, visit: Visit) -> Answer:
        query = dict(parse_qsl(visit.request.query))
        per_page = min(_number(query.get("per_page"), 30), _MOST_PER_PAGE)
        page = _number(query.get("page"), 1)
        sees_private = self.is_app or "repo" in visit.scopes
        found = [each for each in _repositories_of(visit.person) if sees_private or not each["private"]]
        last = max(1, -(-len(found) // per_page))
        links = {"prev": page - 1, "next": page + 1, "last": last, "first": 1}
        shown = [name for name in links if (page < last if name in {"next", "last"} else page > 1)]
        url = f"{visit.request.base}/user/repos"
        link = ", ".join(f'<{url}?{urlencode({**query, "page": links[name]})}>; rel="{name}"' for name in shown)
        headers = {"x-oauth-scopes": ", ".join(self.stated_scopes(visit.scopes))}
        if link:
            headers["link"] = link
        return json_answer(found[(page - 1) * per_page : page * per_page], headers=headers)


def _message(message: str, status: int) -> Answer:
    document = {"message": message, "documentation_url": "https://docs.github.com/rest", "status": str(status)}
    return json_answer(document, status)


def _number(text: str | None, default: int) -> int:
    return int(text) if text and text.isdecimal() and int(text) > 0 else default


def _owner(person: Person) -> dict[str, Any]:
    return {
        "login": person.login,
        "id": person.number,
        "url": f"https://api.github.com/users/{person.login}",
        "html_url": f"https://github.com/{person.login}",
        "type": "User",
        "site_admin": False,
    }


def _repositories_of(person: Person) -> list[dict[str, Any]]:
    # Each has some of the names, and every third repository is private.
    names = _REPOSITORIES if person.number % 2 else _REPOSITORIES[2:]
    return [
        {
            "id": person.number * 100 + place,
            "name": name,
            "full_name": f"{person.login}/{name}",
            "private": place % 3 == 0,
            "owner": _owner(person),
            "html_url": f"https://github.com/{person.login}/{name}",
            "url": f"https://api.github.com/repos/{person.login}/{name}",
            "fork": False,
            "default_branch": "main",
        }
        for place, name in enumerate(names, start=1)
    ]
