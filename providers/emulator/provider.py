"""One emulated provider: its descriptor, its dialect, what it remembers and how it behaves today."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from broker.oauth.model import ProviderDescriptor, TokenEndpointAuthMethod
from providers.emulator.clients import Client
from providers.emulator.dialects import dialect_of
from providers.emulator.documents import fitting
from providers.emulator.http import Request
from providers.emulator.knobs import Knobs
from providers.emulator.ledger import AccessToken, Ledger
from providers.emulator.people import PEOPLE, Person
from providers.emulator.rotation import Rule, rule_of
from providers.emulator.signing import Signer

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


class Provider:
    """What the endpoints of one provider share."""

    def __init__(
        self,
        descriptor: ProviderDescriptor,
        *,
        knobs: Knobs,
        signer: Signer,
        now: Callable[[], datetime],
        random: Callable[[int], bytes],
    ) -> None:
        self.descriptor = descriptor
        self.dialect = dialect_of(descriptor)
        self.ledger = Ledger()
        self.knobs = knobs
        self.signer = signer
        self.clients: dict[str, Client] = {}
        self._now = now
        self._random = random
        for name in descriptor.metadata:  # a value that cannot be made is found now, not at somebody's first connect
            self.metadata_value(name, PEOPLE["ada"])
        self.default_client = self.register(f"emulated-{descriptor.slug}", f"emulated-{descriptor.slug}-secret")

    def register(
        self,
        client_id: str,
        client_secret: str,
        *,
        redirect_uris: Iterable[str] = (),
        token_endpoint_auth_method: TokenEndpointAuthMethod | None = None,
    ) -> Client:
        """Add a client, or replace the one of that id; the descriptor's authentication method unless told otherwise."""
        method = token_endpoint_auth_method or self.descriptor.token_endpoint_auth_method
        client = Client(
            client_id=client_id,
            client_secret=None if method == "none" else client_secret,
            token_endpoint_auth_method=method,
            redirect_uris=tuple(redirect_uris),
        )
        self.clients[client_id] = client
        return client

    # --- time and chance ----------------------------------------------------------------------------------------------

    def now(self) -> datetime:
        """Return the time by this provider's clock, which may go wrong."""
        return self._now() + timedelta(seconds=self.knobs.clock_skew)

    def token_text(self, prefix: str = "", length: int = 36) -> str:
        """Return a new token, of at least *length* characters after its prefix."""
        return prefix + self.random_text(max(length, self.knobs.token_length - len(prefix)))

    def random_text(self, length: int) -> str:
        """Return letters and digits that nobody can guess."""
        return "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in self._random(length))

    # --- rules --------------------------------------------------------------------------------------------------------

    @property
    def rule(self) -> Rule:
        return rule_of(self.descriptor.rotation, self.knobs.rotation)

    @property
    def access_token_ttl(self) -> timedelta | None:
        """How long an access token issued now will live; None: for ever."""
        if self.knobs.access_token_ttl is None:
            return self.dialect.access_token_ttl
        return timedelta(seconds=self.knobs.access_token_ttl) or None

    def metadata_value(self, name: str, person: Person) -> str:
        """Return what `[metadata.<name>]` is for a person. Raises `DescriptorError` where no value fits its pattern."""
        return self.dialect.metadata(name, person) or fitting(name, self.descriptor.metadata[name], person)

    # --- recognizing --------------------------------------------------------------------------------------------------

    def knows(self, values: Iterable[str]) -> bool:
        """Return whether one of *values* is a client, code or token of this provider: some share their hosts."""
        return any(value in self.clients or self.ledger.knows(value) for value in values)

    def presented_token(self, request: Request) -> str | None:
        """Return the access token that an API call carries, in the provider's header."""
        api = self.descriptor.api
        value = request.headers.get(api.token_header.lower(), "")
        prefix = value[: len(api.token_prefix)]
        return value[len(api.token_prefix) :] if prefix.lower() == api.token_prefix.lower() and value else None

    def bearer(self, request: Request) -> AccessToken | None:
        """Return the working access token of an API call."""
        text = self.presented_token(request)
        return None if text is None else self.ledger.access_token(text, now=self.now())

    # --- what happens to tokens without a request ---------------------------------------------------------------------

    def expire_now(self) -> None:
        """End every access token; refresh tokens live on."""
        self.ledger.end_access_tokens()

    def revoke_user(self, login: str) -> None:
        """End everything a person granted, as if withdrawn in the provider's settings."""
        self.ledger.end_person(PEOPLE[login])
