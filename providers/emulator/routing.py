"""URL templates of a descriptor as patterns: which host and path a request must have to be meant by one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import parse_qsl, urlsplit

import msgspec

from broker.oauth.model import ConfigField, MetadataSource, ProviderDescriptor

_PLACEHOLDER = re.compile(r"\{([A-Za-z0-9_.-]+)\}")


class UrlPattern(msgspec.Struct, frozen=True):
    """What a URL template leads to."""

    hosts: tuple[str, ...]  # exact, or ".suffix"
    path: re.Pattern[str]
    names: tuple[str, ...]  # the path's placeholders, in the order of its groups
    query: frozenset[tuple[str, str]]  # parameters the template itself has

    def match(self, host: str, path: str, query: str) -> Mapping[str, str] | None:
        """Return the values of the path's placeholders, or None where the request means something else."""
        found = self.path.fullmatch(path)
        if found is None or not is_listed(host, self.hosts) or not self.query <= set(parse_qsl(query)):
            return None
        return dict(zip(self.names, found.groups(), strict=True))


def pattern_of(descriptor: ProviderDescriptor, template: str) -> UrlPattern:
    """Return the pattern of a URL template; a route in its fragment counts as the path."""
    before, _, fragment = template.partition("#")
    base, path = _base_and_path(before)
    route, _, query = (fragment or path).partition("?")
    literal = frozenset(pair for pair in parse_qsl(query) if not _PLACEHOLDER.search(pair[1]))
    return UrlPattern(
        hosts_of(descriptor, base), _path_regex(route or "/"), tuple(_PLACEHOLDER.findall(route)), literal
    )


def host_pattern(hosts: Iterable[str], path: str) -> UrlPattern:
    """Return the pattern of a path (with `{name}` segments) at *hosts*, which are given as in `api.allowed_hosts`."""
    return UrlPattern(tuple(hosts), _path_regex(path), tuple(_PLACEHOLDER.findall(path)), frozenset())


def _base_and_path(url: str) -> tuple[str, str]:
    scheme, separator, rest = url.rpartition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host}", slash + path


def _path_regex(path: str) -> re.Pattern[str]:
    literals = [re.escape(text) for text in re.split(r"\{[^}]*\}", path)]
    return re.compile("([^/]+)".join(literals))


def hosts_of(descriptor: ProviderDescriptor, template: str) -> tuple[str, ...]:
    """Return every host, as rules, that the host of a URL template can be; "*" where an operator may name any."""
    base = _base_and_path(template.partition("#")[0])[0]
    names = _PLACEHOLDER.findall(base)
    if not names:
        return (urlsplit(base).hostname or "",)
    declared = _declared(descriptor, names[0])
    if declared.hosts:
        return declared.hosts
    return ("." + base.rpartition("}")[2].lstrip("."),)


def _declared(descriptor: ProviderDescriptor, name: str) -> ConfigField | MetadataSource:
    table, _, key = name.partition(".")
    return descriptor.config[key] if table == "config" else descriptor.metadata[key]


def is_listed(host: str, rules: Iterable[str]) -> bool:
    """Return whether a host is one of *rules*: "*", exact, or ".suffix"."""
    return any(rule == "*" or host == rule or (rule.startswith(".") and host.endswith(rule)) for rule in rules)
