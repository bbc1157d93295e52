"""What a descriptor may not say: every rule that the loader holds a file to, beyond the types of `model.py`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from broker.errors import DescriptorError
from broker.oauth.model import ConfigField, MetadataSource, Predicate, ProviderDescriptor
from broker.oauth.schema import dotted_keys
from broker.oauth.template import (
    check_placeholders,
    check_url_template,
    config_problem,
    host_allowed,
    placeholders,
    reachable_hosts,
)

# Ours alone: an extra parameter that set one of these could turn a refresh into another grant, or undo a protection.
_OURS_AT_TOKEN = frozenset({"grant_type", "client_secret", "code", "refresh_token", "code_verifier"})
OURS_AT_AUTHORIZE = frozenset(
    {"response_type", "client_id", "redirect_uri", "state", "code_challenge", "code_challenge_method"}
)
_MAY_BE_OMITTED = frozenset({"response_type", "scope", "redirect_uri"})
_RESPONSE_MEMBERS = frozenset(
    {
        "access_token",
        "refresh_token",
        "token_type",
        "expires_in",
        "expires_at",
        "refresh_token_expires_in",
        "refresh_token_expires_at",
        "scope",
        "id_token",
    }
)
_POINTER = re.compile(r"(?:/(?:[^~/]|~[01])*)*")
_HOST_RULE = re.compile(r"\.?[a-z0-9-]+(?:\.[a-z0-9-]+)+")
_SOURCE = re.compile(r"(?P<kind>token|account):(?P<pointer>/.*)|callback:[A-Za-z0-9_-]+|id_token:[A-Za-z0-9_-]+")
_LONGEST_PATTERN = 255


def problems(descriptor: ProviderDescriptor) -> Iterator[str]:
    """Yield what is wrong with a descriptor, each naming its key; nothing when it may be used."""
    yield from _endpoint_problems(descriptor)
    yield from _template_problems(descriptor)
    yield from _pointer_problems(descriptor)
    yield from _quirk_problems(descriptor)
    yield from _error_problems(descriptor)
    for name, field in descriptor.config.items():
        yield from (f"config.{name} {problem}" for problem in _field_problems(field))
    for name, source in descriptor.metadata.items():
        yield from (f"metadata.{name} {problem}" for problem in _source_problems(descriptor, source))
    yield from _account_problems(descriptor)
    yield from _revocation_problems(descriptor)
    yield from _host_problems(descriptor)
    yield from _scope_problems(descriptor)
    yield from _docs_problems(descriptor)


# --- endpoints and templates --------------------------------------------------------------------------------------


def _endpoint_problems(descriptor: ProviderDescriptor) -> Iterator[str]:
    if descriptor.authorization_endpoint is None or descriptor.token_endpoint is None:
        yield "authorization_endpoint and token_endpoint are both required"
    supported = descriptor.token_endpoint_auth_methods_supported
    if supported and descriptor.token_endpoint_auth_method not in supported:
        yield "token_endpoint_auth_method is not among token_endpoint_auth_methods_supported"
    if "authorization_code" not in descriptor.grant_types_supported:
        yield "grant_types_supported lacks authorization_code"
    if descriptor.authorization_response_iss_parameter_supported and descriptor.issuer is None:
        yield "authorization_response_iss_parameter_supported needs an issuer to compare with"
    in_fragment = "#" in (descriptor.authorization_endpoint or "")
    if in_fragment != descriptor.quirks.authorization_in_fragment:
        yield "authorization_endpoint has a fragment exactly when quirks.authorization_in_fragment is true"


def _url_templates(descriptor: ProviderDescriptor) -> Iterator[tuple[str, str]]:
    """Yield every key that holds a URL template, with the template."""
    exchange = descriptor.quirks.exchange
    templates = {
        "issuer": descriptor.issuer,
        "authorization_endpoint": descriptor.authorization_endpoint,
        "token_endpoint": descriptor.token_endpoint,
        "quirks.refresh_endpoint": descriptor.quirks.refresh_endpoint,
        "quirks.resource": descriptor.quirks.resource,
        "quirks.exchange.endpoint": exchange.endpoint if exchange else None,
        "revocation_endpoint": descriptor.revocation_endpoint,
        "introspection_endpoint": descriptor.introspection_endpoint,
        "userinfo_endpoint": descriptor.userinfo_endpoint,
        "jwks_uri": descriptor.jwks_uri,
        "account.endpoint": descriptor.account.endpoint,
        "revocation.endpoint": descriptor.revocation.endpoint,
        "revocation.removal_url": descriptor.revocation.removal_url,
        "api.base_url": descriptor.api.base_url,
        **{
            f"metadata.{name}.confirm.endpoint": source.confirm.endpoint
            for name, source in descriptor.metadata.items()
            if source.confirm
        },
    }
    yield from ((key, template) for key, template in templates.items() if template is not None)


def _value_templates(descriptor: ProviderDescriptor) -> Iterator[tuple[str, str]]:
    """Yield every header and parameter value, with its key."""
    quirks, revocation, api = descriptor.quirks, descriptor.revocation, descriptor.api
    tables = {
        "quirks.authorization_params": quirks.authorization_params,
        "quirks.token_params": quirks.token_params,
        "quirks.refresh_params": quirks.refresh_params,
        "quirks.token_headers": quirks.token_headers,
        "quirks.exchange.params": quirks.exchange.params if quirks.exchange else {},
        "account.headers": descriptor.account.headers,
        "revocation.params": revocation.params,
        "revocation.headers": revocation.headers,
        "api.headers": api.headers,
        "api.query": api.query,
    }
    for key, table in tables.items():
        yield from ((f"{key}.{name}", value) for name, value in table.items())


def _template_problems(descriptor: ProviderDescriptor) -> Iterator[str]:
    secrets = {f"config.{name}" for name, field in descriptor.config.items() if field.secret}
    for key, template in _url_templates(descriptor):
        try:
            check_url_template(descriptor, template)
        except DescriptorError as error:
            yield f"{key}: {error}"
        if template.startswith("http:"):
            yield f"{key} must be https"
        if secrets.intersection(placeholders(template)):
            yield f"{key} would put a secret field into a URL"
    for key, value in _value_templates(descriptor):
        try:
            check_placeholders(descriptor, value)
        except DescriptorError as error:
            yield f"{key}: {error}"


def _pointers(descriptor: ProviderDescriptor) -> Iterator[tuple[str, str | None]]:
    account, errors = descriptor.account, descriptor.errors
    yield from ((f"quirks.response_map.{name}", pointer) for name, pointer in descriptor.quirks.response_map.items())
    yield from (("errors.code", errors.code), ("errors.description", errors.description))
    yield from (("account.list", account.list), ("account.id", account.id), ("account.name", account.name))
    yield from (("account.email", account.email), ("account.tenant_id", account.tenant_id))
    yield from (("account.tenant_name", account.tenant_name), ("account.choose", _default_pointer(account.choose)))
    for name, source in descriptor.metadata.items():
        if source.confirm:
            yield f"metadata.{name}.confirm.list", source.confirm.list
            yield f"metadata.{name}.confirm.pointer", source.confirm.pointer
        if match := _SOURCE.fullmatch(source.source):
            yield f"metadata.{name}.from", match["pointer"]


def _default_pointer(choose: str) -> str | None:
    return choose.removeprefix("default:") if choose.startswith("default:") else None


def _pointer_problems(descriptor: ProviderDescriptor) -> Iterator[str]:
    for key, pointer in _pointers(descriptor):
        if pointer is not None and not _POINTER.fullmatch(pointer):
            yield f"{key} is not a JSON pointer (RFC 6901)"
    unknown = descriptor.quirks.response_map.keys() - _RESPONSE_MEMBERS
    if unknown:
        yield f"quirks.response_map.{min(unknown)} is not a member of a token response"
    yield from _predicate_problems("errors.predicate", descriptor.errors.predicate)
    yield from _predicate_problems("revocation.predicate", descriptor.revocation.predicate)


def _predicate_problems(key: str, predicate: Predicate | None) -> Iterator[str]:
    if predicate is None:
        return
    if not _POINTER.fullmatch(predicate.pointer):
        yield f"{key}.pointer is not a JSON pointer (RFC 6901)"
    if (predicate.equals is not None) == predicate.absent:
        yield f"{key} needs either equals or absent = true"


# --- requests, answers and errors ---------------------------------------------------------------------------------


def _quirk_problems(descriptor: ProviderDescriptor) -> Iterator[str]:
    quirks, rotation = descriptor.quirks, descriptor.rotation
    if taken := OURS_AT_AUTHORIZE & quirks.authorization_params.keys():
        yield f"quirks.authorization_params may not set {min(taken)}"
    for key, params in (("token_params", quirks.token_params), ("refresh_params", quirks.refresh_params)):
        if taken := _OURS_AT_TOKEN & params.keys():
            yield f"quirks.{key} may not set {min(taken)}"
    if kept := set(quirks.omit_params) - _MAY_BE_OMITTED:
        yield f"quirks.omit_params may not drop {min(kept)}"
    if len(set(quirks.param_names.values())) < len(quirks.param_names):
        yield "quirks.param_names gives two parameters the same name"
    if not re.fullmatch(r"response|callback|request|header:[A-Za-z0-9-]+", quirks.granted_scope_from):
        yield 'quirks.granted_scope_from is "response", "callback", "request" or "header:<Name>"'
    if quirks.expiry_from == "introspection" and descriptor.introspection_endpoint is None:
        yield 'quirks.expiry_from = "introspection" needs an introspection_endpoint'
    if not quirks.response_formats:
        yield "quirks.response_formats is empty"
    if rotation.rotation_class == "R3" and rotation.reuse_grace is None:
        yield "rotation.class R3 needs reuse_grace"
    if rotation.count_limit < 0:
        yield "rotation.count_limit is negative"


def _error_problems(descriptor: ProviderDescriptor) -> Iterator[str]:
    errors = descriptor.errors
    codes = [*errors.dead, *errors.busy, *errors.throttled, *errors.client_fault, *errors.denied]
    if repeated := sorted({code for code in codes if codes.count(code) > 1}):
        yield f"errors: {repeated[0]} stands in more than one list"
    for index, match in enumerate(errors.match):
        if match.status is None and match.code is None and match.description_contains is None:
            yield f"errors.match[{index}] has no condition and would match everything"


# --- inputs and metadata ------------------------------------------------------------------------------------------


def _pattern_problems(pattern: str | None) -> Iterator[str]:
    if pattern is None:
        return
    if len(pattern) > _LONGEST_PATTERN:
        yield f"has a pattern of more than {_LONGEST_PATTERN} characters"
    try:
        re.compile(pattern)
    except re.error as error:
        yield f"has a pattern that does not compile: {error}"


def _rule_problems(rules: tuple[str, ...]) -> Iterator[str]:
    for rule in rules:
        if not _HOST_RULE.fullmatch(rule):
            yield f"has the host rule {rule!r}, which is neither a host nor a suffix that begins with a dot"


def _field_problems(field: ConfigField) -> Iterator[str]:
    yield from _pattern_problems(field.pattern)
    if field.pattern is None and not field.enum:
        yield "needs a pattern or an enum"
    if field.use in {"host", "url"} and not field.hosts:
        yield f'needs a hosts list for use = "{field.use}"'
    if field.scope != "integration" and (field.use == "url" or "*" in field.hosts):
        yield 'leaves the whole host to the user; that is for scope = "integration" only'
    yield from _rule_problems(tuple(rule for rule in field.hosts if rule != "*"))
    if field.secret and (field.use not in {"param", "header"} or field.default is not None):
        yield "is secret: it goes into a parameter or header, and has no default"
    if field.default is not None and (problem := config_problem(field, field.default)):
        yield f"has a default that {problem}"


def _source_problems(descriptor: ProviderDescriptor, source: MetadataSource) -> Iterator[str]:
    yield from _pattern_problems(source.pattern)
    yield from _rule_problems(source.hosts)
    if not _SOURCE.fullmatch(source.source):
        yield "has a from that is none of token:/pointer, callback:<param>, account:/pointer, id_token:<claim>"
    if source.source.startswith("account:") and descriptor.account.source == "none":
        yield "comes from an account that is never looked up"
    is_host = source.kind in {"host", "origin"}
    if is_host and not source.hosts:
        yield f'needs a hosts list for kind = "{source.kind}"'
    if source.source.startswith("callback:"):
        yield from _callback_problems(descriptor, source, is_host=is_host)


def _callback_problems(descriptor: ProviderDescriptor, source: MetadataSource, *, is_host: bool) -> Iterator[str]:
    """A callback can be forged: its value picks from our list, is confirmed, or is proven by the exchange itself."""
    if is_host:
        if any(rule.startswith(".") for rule in source.hosts):
            yield "lets a callback choose among hosts by suffix; name them exactly"
        return
    if source.pattern is None:
        yield "comes from the callback and needs a pattern"
    in_exchange = f"{{{source.source.replace(':', '.')}}}" in (descriptor.token_endpoint or "")
    if source.confirm is None and not in_exchange:
        yield "comes from the callback and needs confirm"


# --- account, revocation, hosts -----------------------------------------------------------------------------------


def _account_problems(descriptor: ProviderDescriptor) -> Iterator[str]:
    account = descriptor.account
    needs = {
        "request": ("account.endpoint", account.endpoint),
        "userinfo": ("userinfo_endpoint", descriptor.userinfo_endpoint),
        "id_token": ("jwks_uri", descriptor.jwks_uri),
    }
    key, value = needs.get(account.source, ("", ""))
    if value is None:
        yield f'account.source = "{account.source}" needs {key}'
    if not re.fullmatch(r"only|first|default:.*", account.choose):
        yield 'account.choose is "only", "first" or "default:<pointer>"'


def _revocation_problems(descriptor: ProviderDescriptor) -> Iterator[str]:
    revocation = descriptor.revocation
    if revocation.style == "request" and revocation.endpoint is None:
        yield 'revocation.style = "request" needs revocation.endpoint'
    if revocation.style == "rfc7009" and descriptor.revocation_endpoint is None:
        yield 'revocation.style = "rfc7009" needs revocation_endpoint'
    if revocation.style != "request" and revocation.endpoint is not None:
        yield 'revocation.endpoint is for style = "request"; RFC 7009 has revocation_endpoint'


def _host_problems(descriptor: ProviderDescriptor) -> Iterator[str]:
    """A token goes to allowed_hosts and to the token endpoint's host; every place that is sent one must be there.

    Twin of `connections.providers.hosts_of`, which refuses other hosts when a request is sent.
    """
    allowed = descriptor.api.allowed_hosts
    yield from (f"api.allowed_hosts {problem}" for problem in _rule_problems(allowed))
    server = (*allowed, *reachable_hosts(descriptor, descriptor.token_endpoint)) if descriptor.token_endpoint else ()
    places = {"account.endpoint": allowed, "userinfo_endpoint": allowed, "api.base_url": allowed}
    places |= {f"metadata.{name}.confirm.endpoint": allowed for name in descriptor.metadata}
    places |= {"quirks.exchange.endpoint": server, "revocation.endpoint": server}
    for key, template in _url_templates(descriptor):
        for rule in reachable_hosts(descriptor, template) if key in places else ():
            if not _covered(rule, places[key]):
                yield f"{key} would send a token to {rule}, which is not in api.allowed_hosts"


def _covered(rule: str, allowed: tuple[str, ...]) -> bool:
    return rule in allowed or host_allowed(f"any{rule}" if rule.startswith(".") else rule, allowed)


# --- what people read ---------------------------------------------------------------------------------------------


def _scope_problems(descriptor: ProviderDescriptor) -> Iterator[str]:
    for name, scope in descriptor.scopes.items():
        if not scope.description.strip():
            yield f"scopes.{name}.description is empty"
        if not re.fullmatch(r"[a-z_]+", scope.param):
            yield f"scopes.{name}.param is not the name of a parameter"
        if unknown := sorted(set(scope.implies) - descriptor.scopes.keys()):
            yield f"scopes.{name}.implies names {unknown[0]}, which has no table"


def _docs_problems(descriptor: ProviderDescriptor) -> Iterator[str]:
    docs = descriptor.docs
    if not descriptor.display_name.strip() or "\n" in descriptor.description:
        yield "display_name is empty, or description has more than one line"
    if docs.verified_at is None:
        yield "docs.verified_at is required: the day the facts were read"
    if not docs.sources or not docs.setup_url:
        yield "docs.sources and docs.setup_url are required"
    if any(not url.startswith("https://") for url in (*docs.sources, docs.setup_url)):
        yield "docs.sources and docs.setup_url are https URLs"
    if not descriptor.code_challenge_methods_supported and not _mentions_pkce(descriptor):
        yield "code_challenge_methods_supported = [] needs its reason, a page about PKCE, in docs.sources"
    known = {key for key, _ in dotted_keys()}
    for key in docs.unverified:
        if _general(key, descriptor) not in known:
            yield f"docs.unverified names {key}, which is not a key"


def _mentions_pkce(descriptor: ProviderDescriptor) -> bool:
    return any("pkce" in text.lower() for text in (*descriptor.docs.sources, *descriptor.docs.notes))


def _general(key: str, descriptor: ProviderDescriptor) -> str:
    """Write `config.tenant.pattern` as the schema does: `config.<name>.pattern`."""
    table, _, rest = key.partition(".")
    if table not in {"config", "metadata", "scopes"}:
        return key
    return f"{table}.<name>.{rest.rpartition('.')[2]}"
