"""What a provider is and what it answers: the descriptor as typed values, and the protocol's inputs and results.

Descriptor structs mirror `providers/*.toml` key by key (providers/README.md explains each with an example) and bear the
names of RFC 8414, RFC 7591 and RFC 6749. `catalog.py` fills the defaults that depend on another key, so a reader finds
plain values here.
"""
# ruff: noqa: S105  (the keys are named token_…; none of the values is a secret)

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import Literal

import msgspec
from msgspec import field

from broker.secret import Secret

TokenEndpointAuthMethod = Literal["client_secret_basic", "client_secret_post", "none"]
RequestFormat = Literal["form", "json"]
Method = Literal["GET", "POST", "DELETE", "PUT"]
RotationClass = Literal["R0", "R1", "R2", "R3", "R4", "R5"]
ErrorClass = Literal["dead", "busy", "throttled", "client_fault", "denied"]

# A duration written "" in a descriptor: the provider states that there is no expiry. None: nobody knows.
NO_EXPIRY = timedelta.max
# A shorter window is over before a lost answer is noticed (a timeout takes up to 140 s, a crash 180 s).
SHORTEST_USABLE_GRACE = timedelta(minutes=5)


class DescriptorTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of a descriptor; a key it does not know stops the loader."""


# --- the descriptor -----------------------------------------------------------------------------------------------


class Exchange(DescriptorTable, frozen=True, kw_only=True):
    """`[quirks.exchange]`: one further request after the code exchange, whose answer replaces the first."""

    endpoint: str
    method: Literal["GET", "POST"] = "POST"
    grant_type: str = ""  # "": none is sent
    presents: Literal["access_token", "refresh_token"] = "access_token"  # which token of the first answer is sent
    param: str = "access_token"  # under which name
    params: Mapping[str, str] = {}


class Quirks(DescriptorTable, frozen=True, kw_only=True):
    """`[quirks]`: how this provider's requests and answers differ from the RFCs."""

    authorization_params: Mapping[str, str] = {}
    required_scopes: tuple[str, ...] = ()
    scopes_required: bool = False
    scope_separator: str = " "
    granted_scope_separator: str = " "  # the loader's default: scope_separator
    granted_scope_from: str = "response"  # or "callback", "request", "header:<Name>"
    token_request_format: RequestFormat = "form"
    token_params_in: Literal["body", "query"] = "body"
    token_params: Mapping[str, str] = {}
    refresh_params: Mapping[str, str] = {}
    token_headers: Mapping[str, str] = {}  # token, refresh and revocation requests alike
    param_names: Mapping[str, str] = {}  # the standard's name → the provider's
    omit_params: tuple[str, ...] = ()
    raw_params: tuple[str, ...] = ()
    authorization_in_fragment: bool = False
    callback_code_param: str = "code"
    callback_state_param: str = "state"
    code_ttl: timedelta = timedelta(minutes=10)
    refresh_endpoint: str | None = None  # None: token_endpoint
    refresh_request_format: RequestFormat = "form"  # the loader's default: token_request_format
    refresh_grant_type: str = "refresh_token"
    refresh_presents: Literal["refresh_token", "access_token"] = "refresh_token"
    refresh_method: Literal["POST", "GET"] = "POST"
    response_formats: tuple[RequestFormat, ...] = ("json",)
    response_map: Mapping[str, str] = {}  # our member → JSON pointer into the answer; absent: RFC 6749's place
    token_type: str | None = None  # assumed where the answer has none
    expires_unit: Literal["s", "ms"] = "s"
    expires_at_format: Literal["epoch_s", "epoch_ms", "iso8601"] = "epoch_s"
    expiry_from: Literal["response", "jwt", "introspection", "none"] = "response"
    basic_credentials: Literal["urlencoded", "raw", "secret_only"] = "urlencoded"
    resource: str | None = None  # RFC 8707, at authorize, token and refresh alike
    exchange: Exchange | None = None


class Rotation(DescriptorTable, frozen=True, kw_only=True):
    """`[rotation]`: what a refresh does to the tokens held. The defaults are those of an undocumented provider."""

    rotation_class: RotationClass = field(name="class", default="R5")
    kills_old_access_token: bool = True  # the loader's default: whether effective_class is R4 or R5
    reuse_grace: timedelta | None = None  # R3: the window; R2: how long at most
    access_token_ttl: timedelta | None = None  # only where the answer gives none; NO_EXPIRY: it does not expire
    refresh_token_idle_ttl: timedelta | None = None
    refresh_token_absolute_ttl: timedelta | None = None
    count_limit: int = 0  # live refresh tokens per user and client; 0: no limit known
    server_error: Literal["in_doubt", "retry"] = "in_doubt"  # the loader's default: retry for R0 to R3
    needs_fixed_egress: bool = False

    @property
    def effective_class(self) -> RotationClass:
        """Return the class the refresh runs by: R3 needs a window long enough to notice a loss in, else it is R5."""
        if self.rotation_class != "R3":
            return self.rotation_class
        usable = self.reuse_grace is not None and self.reuse_grace >= SHORTEST_USABLE_GRACE
        return "R3" if usable else "R5"


class Predicate(DescriptorTable, frozen=True, kw_only=True):
    """A condition on an answer's body: the pointer's value equals *equals*, or nothing is there."""

    pointer: str
    equals: str | int | bool | None = None
    absent: bool = False  # True: holds when the pointer finds nothing; *equals* is not looked at


class ErrorMatch(DescriptorTable, frozen=True, kw_only=True):
    """`[[errors.match]]`: one error told apart by more than its code; every condition given must hold."""

    error_class: ErrorClass = field(name="class")
    status: int | None = None
    code: str | None = None
    description_contains: str | None = None


class Errors(DescriptorTable, frozen=True, kw_only=True):
    """`[errors]`: the provider's dialect. First `match`, then the lists; a code in none of them ends nothing."""

    predicate: Predicate | None = None  # a 2xx answer is an error unless this holds
    code: str = "/error"
    description: str = "/error_description"
    dead: tuple[str, ...] = ("invalid_grant",)
    busy: tuple[str, ...] = ()
    throttled: tuple[str, ...] = ()
    client_fault: tuple[str, ...] = ("invalid_client", "unauthorized_client")
    denied: tuple[str, ...] = ("access_denied",)
    match: tuple[ErrorMatch, ...] = ()


class ConfigField(DescriptorTable, frozen=True, kw_only=True):
    """`[config.<field>]`: what the operator or the end user must say; `template.validate_config` checks it."""

    label: str = ""  # the loader's default: the field's name
    description: str = ""
    example: str = ""
    scope: Literal["integration", "connection"] = "connection"
    required: bool = True
    pattern: str | None = None  # full match; None only with an enum
    prefix: str = ""  # shown around the input, stripped when pasted
    suffix: str = ""
    enum: Mapping[str, str] = {}  # value → label; the loader accepts a plain list too
    default: str | None = None
    use: Literal["label", "host", "url", "path", "param", "header"] = "param"
    hosts: tuple[str, ...] = ()
    secret: bool = False


class Confirm(DescriptorTable, frozen=True, kw_only=True):
    """`metadata.<name>.confirm`: the look-up that proves a callback's hint with the new token."""

    endpoint: str
    list: str | None = None  # pointer to the array the value must appear in; None: the endpoint answering is the proof
    pointer: str = ""  # into each element of the array


class MetadataSource(DescriptorTable, frozen=True, kw_only=True):
    """`[metadata.<name>]`: what an answer or the callback tells us to keep."""

    source: str = field(name="from")  # token:/pointer, callback:<param>, account:/pointer, id_token:<claim>
    kind: Literal["string", "label", "host", "origin"] = "string"
    pattern: str | None = None
    hosts: tuple[str, ...] = ()
    required: bool = False
    recapture: Literal["each_refresh", "connect"] = "each_refresh"
    confirm: Confirm | None = None
    pin: bool = False  # must not change over the life of a connection


class AccountLookup(DescriptorTable, frozen=True, kw_only=True):
    """`[account]`: who is on the other side. Pointers go into the answer, or into each element of *list*."""

    source: Literal["userinfo", "id_token", "token", "request", "none"] = (
        "none"  # the loader's: userinfo if there is one
    )
    endpoint: str | None = None  # for "request"
    method: Literal["GET", "POST"] = "GET"
    headers: Mapping[str, str] = {}
    body: str = ""  # sent as it is, as JSON
    list: str | None = None  # "" is the whole answer; None: the answer is one account
    choose: str = "only"  # of several: or "first", "default:<pointer>"
    id: str = "/sub"
    name: str | None = "/name"
    email: str | None = "/email"
    tenant_id: str | None = None
    tenant_name: str | None = None


class Revocation(DescriptorTable, frozen=True, kw_only=True):
    """`[revocation]`: how a grant is ended at the provider, and what that ends."""

    style: Literal["rfc7009", "request", "none"] = "none"  # the loader's default: rfc7009 if there is an endpoint
    endpoint: str | None = None  # for "request"
    method: Method = "POST"
    auth: TokenEndpointAuthMethod | Literal["bearer"] | None = None  # None: as at the token endpoint
    format: RequestFormat = "form"
    params: Mapping[str, str] = {}
    headers: Mapping[str, str] = {}
    token: Literal["refresh_token", "access_token", "both"] = "refresh_token"
    needs_live_access_token: bool = False
    success: tuple[int, ...] = (200, 204)
    predicate: Predicate | None = None
    effect: Literal["grant", "token", "tokens"] = "grant"
    removal_url: str | None = None  # where the user can withdraw access by hand


class Api(DescriptorTable, frozen=True, kw_only=True):
    """`[api]`: where the provider's APIs are, and the only hosts that ever see one of its tokens."""

    base_url: str | None = None
    allowed_hosts: tuple[str, ...] = ()  # exact, or ".suffix"; the loader's default: the host of base_url
    headers: Mapping[str, str] = {}
    query: Mapping[str, str] = {}
    token_header: str = "Authorization"
    token_prefix: str = "Bearer "


class ScopeInfo(DescriptorTable, frozen=True, kw_only=True):
    """`[scopes.<name>]`: one scope in plain words."""

    description: str
    scope_class: Literal["read", "write", "admin"] = field(name="class")
    implies: tuple[str, ...] = ()
    param: str = "scope"  # the authorization parameter it travels in


class Docs(DescriptorTable, frozen=True, kw_only=True):
    """`[docs]`: where the facts come from and how old they are."""

    setup_url: str = ""
    sources: tuple[str, ...] = ()
    verified_at: date | None = None  # None: never; only a custom provider's descriptor may say so
    unverified: tuple[str, ...] = ()  # dotted keys whose values are still to be confirmed
    notes: tuple[str, ...] = ()


class ProviderDescriptor(DescriptorTable, frozen=True, kw_only=True):
    """One provider as data. Endpoints may be templates; `template.expand_endpoints` makes URLs of them."""

    slug: str  # the file's name; not a key of the file
    display_name: str
    description: str = ""
    issuer: str | None = None
    authorization_endpoint: str | None = None
    token_endpoint: str | None = None
    revocation_endpoint: str | None = None
    introspection_endpoint: str | None = None
    userinfo_endpoint: str | None = None
    jwks_uri: str | None = None
    authorization_response_iss_parameter_supported: bool = False
    grant_types_supported: tuple[str, ...] = ("authorization_code", "refresh_token")
    code_challenge_methods_supported: tuple[Literal["S256"], ...] = ("S256",)  # (): PKCE is switched off
    token_endpoint_auth_method: TokenEndpointAuthMethod
    token_endpoint_auth_methods_supported: tuple[str, ...] = ()
    revocation_endpoint_auth_method: TokenEndpointAuthMethod | None = None  # None: as at the token endpoint
    quirks: Quirks = Quirks()
    rotation: Rotation = Rotation()
    errors: Errors = Errors()
    config: Mapping[str, ConfigField] = {}
    metadata: Mapping[str, MetadataSource] = {}
    account: AccountLookup = AccountLookup()
    revocation: Revocation = Revocation()
    api: Api = Api()
    scopes: Mapping[str, ScopeInfo] = {}
    docs: Docs = Docs()


# --- what a flow works with ---------------------------------------------------------------------------------------


class ClientRegistration(msgspec.Struct, frozen=True, kw_only=True):
    """Our registration at the provider (RFC 7591 names)."""

    client_id: str
    client_secret: Secret | None  # None: a public client
    redirect_uri: str
    token_endpoint_auth_method: TokenEndpointAuthMethod


class Endpoints(msgspec.Struct, frozen=True, kw_only=True):
    """The endpoints of one flow after expansion, stored with it: a callback can then never choose another host."""

    issuer: str | None = None
    authorization_endpoint: str | None = None
    token_endpoint: str | None = None
    refresh_endpoint: str | None = None  # the token endpoint unless the provider has one of its own
    revocation_endpoint: str | None = None
    introspection_endpoint: str | None = None
    userinfo_endpoint: str | None = None
    jwks_uri: str | None = None


class TokenSet(msgspec.Struct, frozen=True, kw_only=True):
    """A successful token answer (RFC 6749 §5.1), read by the provider's dialect."""

    access_token: Secret
    refresh_token: Secret | None = None
    token_type: str = "Bearer"
    expires_in: int | None = None  # seconds; None: not stated
    expires_at: datetime | None = None  # where the answer gave an absolute time
    refresh_token_expires_in: int | None = None  # seconds; None: not stated
    refresh_token_expires_at: datetime | None = None
    scopes: tuple[str, ...] | None = None  # None: not stated, so as requested
    id_token: Secret | None = None
    metadata: Mapping[str, str] = {}  # `[metadata]` values from the answer, validated


class ProviderAccount(msgspec.Struct, frozen=True, kw_only=True):
    """Whose account at the provider a grant belongs to; *id* is the pin against a mix-up."""

    id: str
    name: str | None = None
    email: str | None = None
    tenant_id: str | None = None
    tenant_name: str | None = None


class TokenOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a token request came to. Only "ok" has tokens; only "dead" is a candidate for reauthorization."""

    kind: Literal["ok", "dead", "busy", "throttled", "client_fault", "denied", "unavailable", "in_doubt", "unknown"]
    tokens: TokenSet | None = None
    error: str | None = None  # the provider's own code: printable ASCII, at most 100 characters
    retry_after: timedelta | None = None
