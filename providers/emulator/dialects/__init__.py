"""What providers say that no descriptor can state: one module each, and plain RFC 6749 for everybody else."""

from __future__ import annotations

from broker.oauth.model import ProviderDescriptor
from providers.emulator.dialects.base import Dialect
from providers.emulator.dialects.github import GitHub
from providers.emulator.dialects.google import Google
from providers.emulator.dialects.microsoft import Microsoft
from providers.emulator.dialects.salesforce import Salesforce
from providers.emulator.dialects.slack import Slack
from providers.emulator.routing import hosts_of

# By a host of the token endpoint, so that a descriptor which extends one of ours speaks like its parent.
_DIALECTS: dict[str, type[Dialect]] = {
    "github.com": GitHub,
    "oauth2.googleapis.com": Google,
    "login.microsoftonline.com": Microsoft,
    "login.salesforce.com": Salesforce,
    "test.salesforce.com": Salesforce,
    "slack.com": Slack,
}


def dialect_of(descriptor: ProviderDescriptor) -> Dialect:
    """Return the dialect that this descriptor's provider speaks."""
    hosts = hosts_of(descriptor, descriptor.token_endpoint or "")
    return next((_DIALECTS[host] for host in hosts if host in _DIALECTS), Dialect)(descriptor)
