"""The one HTTP client: whatever Penstock sends to a provider, a webhook or a key service goes through here."""

from broker.outbound.client import Outbound
from broker.outbound.exchange import SendFailed, SendState

__all__ = ["Outbound", "SendFailed", "SendState"]
