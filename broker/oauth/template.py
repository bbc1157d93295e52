"""Values from outside, and the URLs made of them: no input may choose a host that the descriptor does not name.

A secret goes wherever a URL points, so every value is checked here, on the server, in the form in which it is used,
and every finished URL is parsed again and its host compared with the one that was meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple, NoReturn
from urllib.parse import quote, urlsplit

from broker.errors import DescriptorError, InvalidRequest
from broker.oauth.model import ConfigField, Endpoints, MetadataSource, ProviderDescriptor

LONGEST_VALUE = 255
LONGEST_HOST = 253  # RFC 1035 §2.3.4, as text

_PLACEHOLDER = r"\{(?:(?:config|metadata|callback)\.[A-Za-z0-9_-]+|[a-z_]+)\}"
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL})*"
_TEMPLATED_HOST = rf"(?:(?:{_LABEL}|{_PLACEHOLDER})\.)*{_LABEL}\.{_LABEL}"  # ends in two literal labels at least
_URL_TEMPLATE = re.compile(
    rf"(?P<base>{_PLACEHOLDER}|https?://[^/?#]+)(?P<path>(?:/[^?#]*)?)(?P<query>(?:\?[^#]*)?)(?P<fragment>(?:\#/[^{{}}]*)?)"
)
_ORIGIN = re.compile(rf"https://({_HOST})/?")
_URL_VALUE = re.compile(rf"https://({_HOST})(?::[0-9]{{2,5}})?(?:/[A-Za-z0-9._~-]+)*/?")
_UNSAFE = re.compile(r"[\\@#?%/\x00-\x20\x7f]|[^\x00-\x7f]")
_PLAIN = frozenset({"client_id", "redirect_uri", "state", "uuid", "access_token", "refresh_token"})


class MetadataRefused(ValueError):
    """A provider's answer holds a value that its descriptor does not allow; the message names the field only."""


class _UrlTemplate(NamedTuple):
    base: str  # scheme and host, or the one placeholder that stands for both
    path: str
    query: str
    fragment: str


# --- placeholders -------------------------------------------------------------------------------------------------


def placeholders(text: str) -> list[str]:
    """Return the names a template holds, in order: `config.tenant`, `client_id` …"""
    return [match[1:-1] for match in re.findall(_PLACEHOLDER, text)]


def template_values(
    *,
    config: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
    callback: Mapping[str, str] | None = None,
    **plain: str,
) -> dict[str, str]:
    """Return placeholder name → value for `expand_value`, `expand_params` and `expand_url`."""
    tables = {"config": config or {}, "metadata": metadata or {}, "callback": callback or {}}
    values = {f"{table}.{name}": value for table, given in tables.items() for name, value in given.items()}
    return values | plain


def expand_value(text: str, values: Mapping[str, str]) -> str:
    """Fill a header or parameter value; its encoder runs later. Raises `DescriptorError` for a name without a value."""
    return _filled(text, values, _printable)


def expand_params(
    descriptor: ProviderDescriptor, params: Mapping[str, str], values: Mapping[str, str]
) -> dict[str, str]:
    """Fill a table of parameters or headers; one that names an absent optional field is left out."""
    return {
        name: expand_value(text, values)
        for name, text in params.items()
        if not any(_is_absent_option(descriptor, placeholder, values) for placeholder in placeholders(text))
    }


def _is_absent_option(descriptor: ProviderDescriptor, placeholder: str, values: Mapping[str, str]) -> bool:
    if placeholder in values:
        return False
    table, _, name = placeholder.partition(".")
    if table == "config":
        return name in descriptor.config and not descriptor.config[name].required
    return table == "metadata" and name in descriptor.metadata and not descriptor.metadata[name].required


def _filled(text: str, values: Mapping[str, str], encode: Callable[[str, str], str]) -> str:
    """Substitute in one pass, so that a value holding `{…}` is never expanded again."""

    def value_of(match: re.Match[str]) -> str:
        name = match[0][1:-1]
        if name not in values:
            raise DescriptorError(f"the template placeholder {match[0]} has no value")
        return encode(name, values[name])

    return re.sub(_PLACEHOLDER, value_of, text)


def _printable(name: str, value: str) -> str:
    if not value.isprintable():
        raise DescriptorError(f"the value of {{{name}}} holds control characters")
    return value


def _in_query(name: str, value: str) -> str:
    return quote(_printable(name, value), safe="")


def _in_path(name: str, value: str) -> str:
    # Dot segments are removed by whoever parses the URL next, so they would climb out of the path.
    if not value or _UNSAFE.search(value) or value in {".", ".."}:
        raise DescriptorError(f"the value of {{{name}}} cannot stand in a path")
    return quote(value, safe="")


def _in_host(name: str, value: str) -> str:
    if not re.fullmatch(_LABEL, value):
        raise DescriptorError(f"the value of {{{name}}} is not one DNS label")
    return value


# --- URLs ---------------------------------------------------------------------------------------------------------


def expand_endpoints(
    descriptor: ProviderDescriptor,
    config: Mapping[str, str],
    metadata: Mapping[str, str] | None = None,
    *,
    callback: Mapping[str, str] | None = None,
) -> Endpoints:
    """Return the endpoints of one flow. One that waits for the callback or the first answer is None until then.

    *config* is what `validate_config` returned; *metadata* and *callback* values have passed `check_metadata`.
    Raises `DescriptorError` when a field has no value or a finished URL has another host than was meant.
    """
    defaults = {name: field.default for name, field in descriptor.config.items() if field.default is not None}
    values = template_values(config=defaults | dict(config), metadata=metadata, callback=callback)

    def expanded(template: str | None) -> str | None:
        if template is None or _is_early(placeholders(template), values):
            return None
        return expand_url(descriptor, template, values)

    return Endpoints(
        issuer=expanded(descriptor.issuer),
        authorization_endpoint=expanded(descriptor.authorization_endpoint),
        token_endpoint=expanded(descriptor.token_endpoint),
        refresh_endpoint=expanded(descriptor.quirks.refresh_endpoint or descriptor.token_endpoint),
        revocation_endpoint=expanded(descriptor.revocation_endpoint),
        introspection_endpoint=expanded(descriptor.introspection_endpoint),
        userinfo_endpoint=expanded(descriptor.userinfo_endpoint),
        jwks_uri=expanded(descriptor.jwks_uri),
    )


def _is_early(names: Iterable[str], values: Mapping[str, str]) -> bool:
    return any(name.startswith(("metadata.", "callback.")) and name not in values for name in names)


def expand_url(descriptor: ProviderDescriptor, template: str, values: Mapping[str, str]) -> str:
    """Return the URL of a template, each value encoded for its place and the host checked after parsing it again."""
    parts = check_url_template(descriptor, template)
    base = _expanded_base(descriptor, parts.base, values)
    path, query = _filled(parts.path, values, _in_path), _filled(parts.query, values, _in_query)
    url = f"{base.rstrip('/') if path else base}{path}{query}{parts.fragment}"
    if not _host_of(url) or _host_of(url) != _host_of(base):
        raise DescriptorError(f"{descriptor.slug}: a finished URL has another host than its template")
    return url


def check_url_template(descriptor: ProviderDescriptor, template: str) -> _UrlTemplate:
    """Take a URL template apart. Raise `DescriptorError` where a placeholder stands in a place it may not choose."""
    match = _URL_TEMPLATE.fullmatch(template)
    if match is None:
        raise DescriptorError(f"{descriptor.slug}: {template!r} is not an absolute http(s) URL template")
    parts = _UrlTemplate(**match.groupdict())
    check_placeholders(descriptor, template)
    if re.search(_PLACEHOLDER, parts.base):
        _check_base(descriptor, parts.base)
    return parts


def check_placeholders(descriptor: ProviderDescriptor, text: str) -> None:
    """Raise `DescriptorError` unless every brace belongs to a placeholder that the descriptor declares."""
    known = _PLAIN | {f"config.{name}" for name in descriptor.config}
    known |= {f"metadata.{name}" for name in descriptor.metadata}
    known |= {
        "callback." + source.source.removeprefix("callback:")
        for source in descriptor.metadata.values()
        if source.source.startswith("callback:")
    }
    unknown = [name for name in placeholders(text) if name not in known]
    if unknown or set("{}") & set(re.sub(_PLACEHOLDER, "", text)):
        raise DescriptorError(f"{descriptor.slug}: {text!r} holds a placeholder that the descriptor does not declare")


def _check_base(descriptor: ProviderDescriptor, base: str) -> None:
    host = base.removeprefix("https://")
    roles = {_role(descriptor, name) for name in placeholders(base)}
    if re.fullmatch(_PLACEHOLDER, host):
        allowed = roles <= ({"origin"} if host == base else {"host"})
    else:
        allowed = roles == {"label"} and re.fullmatch(_TEMPLATED_HOST, host) is not None
    if not allowed:
        raise DescriptorError(
            f"{descriptor.slug}: {base!r} lets a value choose the host; use one whole label before a literal suffix, "
            "or a field that has a hosts list"
        )


def reachable_hosts(descriptor: ProviderDescriptor, template: str) -> tuple[str, ...]:
    """Return the hosts, as rules for `host_allowed`, that a URL template can lead to whatever the values are."""
    parts = check_url_template(descriptor, template)
    names = placeholders(parts.base)
    if not names:
        return (urlsplit(parts.base).hostname or "",)
    if _role(descriptor, names[0]) == "label":
        return ("." + re.split(_PLACEHOLDER, parts.base)[-1].lstrip("."),)
    return _declared(descriptor, names[0]).hosts


def _declared(descriptor: ProviderDescriptor, placeholder: str) -> ConfigField | MetadataSource:
    table, _, name = placeholder.partition(".")
    return descriptor.config[name] if table == "config" else descriptor.metadata[name]


def _role(descriptor: ProviderDescriptor, placeholder: str) -> str:
    """Return which part of a host a value may be: label, host, origin, or "" for none. A callback's may be none."""
    table, _, name = placeholder.partition(".")
    if table == "config":
        return {"label": "label", "host": "host", "url": "origin"}.get(descriptor.config[name].use, "")
    if table == "metadata":
        return {"label": "label", "host": "host", "origin": "origin"}.get(descriptor.metadata[name].kind, "")
    return ""


def _expanded_base(descriptor: ProviderDescriptor, base: str, values: Mapping[str, str]) -> str:
    names = placeholders(base)
    if not names:
        return base
    if _role(descriptor, names[0]) == "label":
        return _filled(base, values, _in_host)
    expanded = _filled(base, values, lambda _name, value: value)
    shape = re.compile(rf"https://({_HOST})") if base.startswith("https://") else _URL_VALUE
    match = shape.fullmatch(expanded)
    if match is None or not _is_listed(match[1], _declared(descriptor, names[0]).hosts):
        raise DescriptorError(f"{descriptor.slug}: the value of {{{names[0]}}} is not an allowed host")
    return expanded


def _host_of(url: str) -> str:
    """Return the host as a URL parser sees it; "" where parsers could disagree about it."""
    if not re.fullmatch(r"[!-~]+", url) or "\\" in url:
        return ""
    try:
        parts = urlsplit(url)
        return "" if "@" in parts.netloc else f"{parts.hostname}:{parts.port}"
    except ValueError:
        return ""


# --- what people type and providers answer ------------------------------------------------------------------------


def is_host(name: str) -> bool:
    """Return whether *name* is a DNS name or an IPv4 address in lower case, without a trailing dot."""
    return len(name) <= LONGEST_HOST and re.fullmatch(_HOST, name) is not None


def host_allowed(host: str, rules: Iterable[str]) -> bool:
    """Return whether *host* equals a rule, or ends in one that begins with a dot, so always on a label boundary."""
    name = host.lower()
    if not is_host(name):
        return False
    return any(name.endswith(rule) if rule.startswith(".") else name == rule for rule in map(str.lower, rules))


def _is_listed(host: str, rules: tuple[str, ...]) -> bool:
    # "*" is for fields that only an operator can set (the loader sees to it); the egress guard still stands behind it.
    return "*" in rules or host_allowed(host, rules)


def validate_config(
    descriptor: ProviderDescriptor, given: Mapping[str, str], *, scope: Literal["integration", "connection"]
) -> dict[str, str]:
    """Return the fields of *scope* as they will be used, defaults filled in.

    Raises `InvalidRequest` naming the field, and never repeats its value: it may be a secret pasted by mistake.
    """
    for name in given:
        if name not in descriptor.config:
            raise InvalidRequest(f"config has a field that {descriptor.display_name} does not know: {name[:64]!a}.")
        if descriptor.config[name].scope != scope:
            raise InvalidRequest(f"config.{name} is set on the {descriptor.config[name].scope}, not here.")
    fields = {name: field for name, field in descriptor.config.items() if field.scope == scope}
    checked = {name: _config_value(name, field, given.get(name) or field.default) for name, field in fields.items()}
    return {name: value for name, value in checked.items() if value is not None}


def _config_value(name: str, field: ConfigField, given: str | None) -> str | None:
    if given is None:
        if field.required:
            raise InvalidRequest(f"config.{name} is required ({field.label}).")
        return None
    value = given.strip()
    if field.use in {"label", "host"}:
        value = value.lower()
    value = value.removeprefix(field.prefix).removesuffix(field.suffix)
    problem = config_problem(field, value)
    if problem:
        example = f" Example: {field.example}" if field.example else ""
        raise InvalidRequest(f"config.{name} {problem}.{example}")
    return value


def config_problem(field: ConfigField, value: str) -> str | None:
    """Return what is wrong with a value of *field*, ready to follow its name; None when it may be used."""
    if not value or len(value) > LONGEST_VALUE or not value.isprintable():
        return f"must have 1 to {LONGEST_VALUE} printable characters"
    if field.enum and value not in field.enum:
        return "must be one of " + ", ".join(field.enum)
    if field.pattern is not None and not re.fullmatch(field.pattern, value):
        return "does not have the expected form"
    if field.use == "label" and not re.fullmatch(_LABEL, value):
        return "must be one DNS label"
    if field.use == "path" and (_UNSAFE.search(value) or value in {".", ".."}):
        return "must be one plain path segment"
    if field.use in {"host", "url"}:
        match = re.fullmatch(rf"({_HOST})", value) if field.use == "host" else _URL_VALUE.fullmatch(value)
        if match is None or not _is_listed(match[1], field.hosts):
            return "is not one of the allowed hosts"
    return None


def check_metadata(descriptor: ProviderDescriptor, name: str, value: str) -> str:
    """Return a `[metadata]` value in the form in which it is stored; hosts in lower case, an origin without a slash.

    Raises `MetadataRefused` when the descriptor does not allow it: the connect or refresh then fails, rather than hand
    out a token with a foreign `instance_url`.
    """
    source = descriptor.metadata[name]
    if not value or len(value) > LONGEST_VALUE or not value.isprintable():
        _refuse(descriptor, name)
    if source.kind in {"host", "origin"}:
        return _checked_host(descriptor, name, value.lower())
    if source.pattern is not None and not re.fullmatch(source.pattern, value):
        _refuse(descriptor, name)
    if source.kind == "label" and not re.fullmatch(_LABEL, value):
        _refuse(descriptor, name)
    return value


def _checked_host(descriptor: ProviderDescriptor, name: str, value: str) -> str:
    source = descriptor.metadata[name]
    match = _ORIGIN.fullmatch(value) if source.kind == "origin" else re.fullmatch(rf"({_HOST})", value)
    if match is None or not host_allowed(match[1], source.hosts):
        _refuse(descriptor, name)
    return value.rstrip("/")


def _refuse(descriptor: ProviderDescriptor, name: str) -> NoReturn:
    raise MetadataRefused(f"{descriptor.slug}: the value of metadata.{name} is not one the descriptor allows")
