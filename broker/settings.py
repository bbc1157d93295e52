"""Settings: one struct, decoded once from PENSTOCK_* and its *_FILE twins; nobody else reads the environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, urlsplit

import msgspec

from broker.errors import ConfigurationError
from broker.limits import Limits, parse_limits
from broker.secret import Secret

Problem = Callable[[str, str, str], None]  # variable, what is wrong, remedy

_SECRET_FILES = ("PENSTOCK_DATABASE_URL", "PENSTOCK_REDIS_URL", "PENSTOCK_BOOTSTRAP_API_KEY", "PENSTOCK_KEYRING")
_KNOWN = {
    "PENSTOCK_HOME",
    "PENSTOCK_LISTEN",
    "PENSTOCK_PUBLIC_URL",
    "PENSTOCK_ENVIRONMENT",
    "PENSTOCK_ALLOWED_ORIGINS",
    "PENSTOCK_ALLOWED_RETURN_TO",
    "PENSTOCK_OUTBOUND_ALLOW",
    "PENSTOCK_PROVIDER_HOSTS",
    "PENSTOCK_PROVIDERS_DIR",
    "PENSTOCK_LOG",
    "PENSTOCK_FAILPOINT",
    "PENSTOCK_REFRESH_LIMITS",
    "PENSTOCK_SPOOL",
    "PENSTOCK_FAILOVER",
    *_SECRET_FILES,
    *(f"{name}_FILE" for name in _SECRET_FILES),
}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an operator can set. Values never appear in messages; variables do."""

    environment: Literal["development", "production"] = "development"
    home: Path
    database_url: Secret | None = None  # None: the embedded PostgreSQL under `home`
    redis_url: Secret | None = None
    host: str = "127.0.0.1"
    port: int = 8484
    public_url: str = "http://127.0.0.1:8484"  # without a trailing slash
    keyring: str  # "file:<path>"
    bootstrap_api_key: Secret | None = None
    allowed_origins: tuple[str, ...] = ()
    allowed_return_to: tuple[str, ...] = ()
    outbound_allow: tuple[str, ...] = ()  # "host:port"
    provider_hosts: Mapping[str, str] = {}  # host -> "http://127.0.0.1:9001"
    providers_dir: Path | None = None
    log: Literal["console", "json"] = "console"
    failpoint: str | None = None
    limits: Limits = Limits()
    spool: Path  # where a provider's answer is kept while the database is away
    failover: Literal["seal", "trust"] = "seal"  # trust: every standby is synchronous, so a new timeline lost nothing

    @property
    def production(self) -> bool:
        return self.environment == "production"

    @property
    def secure_cookies(self) -> bool:
        return self.public_url.startswith("https://")


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read and check the settings; raise one `ConfigurationError`, the first of `problems(environ)`."""
    settings, found = examine(os.environ if environ is None else environ)
    if found or settings is None:
        raise found[0]
    return settings


def examine(environ: Mapping[str, str]) -> tuple[Settings | None, list[ConfigurationError]]:
    """Return the settings, if they can be read at all, and every problem: `doctor` and `serve` agree by using this."""
    found: list[ConfigurationError] = []

    def problem(variable: str, what: str, remedy: str) -> None:
        found.append(ConfigurationError(variable, what, remedy))

    for name in sorted(environ):
        if name.startswith("PENSTOCK_") and name not in _KNOWN:
            problem(name, "is not a setting of Penstock", "Check the spelling; README.md lists the settings.")

    def value(name: str) -> str | None:
        direct, path = environ.get(name) or None, environ.get(f"{name}_FILE") if name in _SECRET_FILES else None
        if not path:
            return direct
        if direct:
            problem(name, f"is set beside {name}_FILE", "Set one of the two.")
            return direct
        try:
            return Path(path).read_text().strip() or None
        except OSError:
            problem(f"{name}_FILE", "names a file that cannot be read", "Check the path and its permissions.")
            return None

    environment = value("PENSTOCK_ENVIRONMENT") or "development"
    if environment not in ("development", "production"):
        problem("PENSTOCK_ENVIRONMENT", "is neither 'development' nor 'production'", "Set one of the two.")
    production = environment == "production"

    home = Path(value("PENSTOCK_HOME") or ".penstock").absolute()
    host, port = _listen(value("PENSTOCK_LISTEN") or "127.0.0.1:8484", problem)
    name = f"[{host}]" if ":" in host else host
    public_url = (value("PENSTOCK_PUBLIC_URL") or f"http://{name}:{port}").rstrip("/")
    _check_public_url(public_url, production, given=bool(value("PENSTOCK_PUBLIC_URL")), problem=problem)

    database_url = value("PENSTOCK_DATABASE_URL")
    if production and not database_url:
        problem("PENSTOCK_DATABASE_URL", "is not set", "Production needs its own PostgreSQL: postgresql://…")
    if database_url and not database_url.startswith(("postgresql://", "postgres://")):
        problem("PENSTOCK_DATABASE_URL", "is not a PostgreSQL URL", "Write postgresql://user:password@host/database.")

    keyring = value("PENSTOCK_KEYRING")
    if production and not keyring:
        problem(
            "PENSTOCK_KEYRING", "is not set", "Make a keyring with `penstock keys new` and set file:/path/keyring.json."
        )
    if keyring and not keyring.startswith("file:"):
        problem("PENSTOCK_KEYRING", "names a kind of keyring that does not exist", "Write file:/path/keyring.json.")

    origins = _list(value("PENSTOCK_ALLOWED_ORIGINS"))
    for origin in origins:
        if origin == "*" or not _is_origin(origin):
            problem(
                "PENSTOCK_ALLOWED_ORIGINS",
                "has an entry that is no exact origin",
                "List https://host[:port]; * is refused.",
            )
            break
    return_to = _list(value("PENSTOCK_ALLOWED_RETURN_TO"))
    for url in return_to:
        parts = _parts(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or "*" in url:
            problem(
                "PENSTOCK_ALLOWED_RETURN_TO",
                "has an entry that is no exact URL",
                "List https://host/path without query.",
            )
            break
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            problem("PENSTOCK_ALLOWED_RETURN_TO", "has an http entry that is not loopback", "Use https.")
            break

    hosts: dict[str, str] = {}
    for entry in _list(value("PENSTOCK_PROVIDER_HOSTS")):
        name, equals, target = entry.partition("=")
        if not equals or not _is_origin(target):
            problem(
                "PENSTOCK_PROVIDER_HOSTS",
                "has an entry that is not host=http://address:port",
                "Write github.com=http://127.0.0.1:9001.",
            )
            break
        hosts[name.lower()] = target.rstrip("/")
    allow = _list(value("PENSTOCK_OUTBOUND_ALLOW"))
    failpoint = value("PENSTOCK_FAILPOINT")
    if production:
        for name in ("PENSTOCK_OUTBOUND_ALLOW", "PENSTOCK_PROVIDER_HOSTS", "PENSTOCK_FAILPOINT"):
            if value(name):
                problem(name, "is a convenience of development", "Unset it, or set PENSTOCK_ENVIRONMENT=development.")

    bootstrap = value("PENSTOCK_BOOTSTRAP_API_KEY")
    if bootstrap and (not bootstrap.startswith("sk_") or len(bootstrap) < 46):
        problem(
            "PENSTOCK_BOOTSTRAP_API_KEY", "is not a strong key", "Use sk_ and at least 43 random URL-safe characters."
        )
    log = value("PENSTOCK_LOG") or "console"
    if log not in ("console", "json"):
        problem("PENSTOCK_LOG", "is neither 'console' nor 'json'", "Set one of the two.")

    limits = Limits()
    try:
        limits = parse_limits(value("PENSTOCK_REFRESH_LIMITS") or "")
    except ConfigurationError as exc:
        found.append(exc)
    failover = value("PENSTOCK_FAILOVER") or "seal"
    if failover not in ("seal", "trust"):
        problem("PENSTOCK_FAILOVER", "is neither 'seal' nor 'trust'", "Set trust only if every standby is synchronous.")

    redis_url = value("PENSTOCK_REDIS_URL")
    providers_dir = value("PENSTOCK_PROVIDERS_DIR")
    if providers_dir and not Path(providers_dir).is_dir():
        problem("PENSTOCK_PROVIDERS_DIR", "is not a directory", "Create it, or unset the variable.")
    try:
        settings = Settings(
            environment="production" if production else "development",
            home=home,
            database_url=Secret(database_url) if database_url else None,
            redis_url=Secret(redis_url) if redis_url else None,
            host=host,
            port=port,
            public_url=public_url,
            keyring=keyring or f"file:{home / 'keyring.json'}",
            bootstrap_api_key=Secret(bootstrap) if bootstrap else None,
            allowed_origins=tuple(origin.rstrip("/") for origin in origins),  # browsers send none
            allowed_return_to=return_to,
            outbound_allow=allow,
            provider_hosts=hosts,
            providers_dir=Path(providers_dir).absolute() if providers_dir else None,
            log="json" if log == "json" else "console",
            failpoint=failpoint,
            limits=limits,
            spool=Path(value("PENSTOCK_SPOOL") or home / "spool").absolute(),
            failover="trust" if failover == "trust" else "seal",
        )
    except ValueError:
        return None, found
    return settings, found


def is_loopback(host: str) -> bool:
    """Say whether *host* is this machine by name or address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _list(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _parts(url: str) -> SplitResult:
    """Split a URL; one that cannot be read comes back empty, which no check lets pass."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # read only now, and raises for what is no number
    except ValueError:  # its message quotes the URL
        return urlsplit("")
    return parts


def _is_origin(text: str) -> bool:
    parts = _parts(text)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.path in ("", "/") and not parts.query


def _listen(text: str, problem: Problem) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if host and port.isdigit() and int(port) < 65536:
        return host.strip("[]"), int(port)
    problem("PENSTOCK_LISTEN", "is not host:port", "Write 127.0.0.1:8484.")
    return "127.0.0.1", 8484


def _check_public_url(url: str, production: bool, *, given: bool, problem: Problem) -> None:
    parts = _parts(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path or parts.query or parts.fragment:
        problem("PENSTOCK_PUBLIC_URL", "is not scheme://host[:port]", "The service owns the root of its host.")
    elif production and parts.scheme != "https":
        what = "is not https" if given else "is not set"
        problem("PENSTOCK_PUBLIC_URL", what, "Production needs https://…, as browsers and providers see it.")
