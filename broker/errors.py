"""What can go wrong: the code a caller sees, who can act on it, and whether asking again may help.

A docstring is the message; `code` is wire format and never changes. No status codes here: `api/problems.py` has the one
table.
"""

from __future__ import annotations

from typing import ClassVar, Literal

Actor = Literal["caller", "user", "operator", "nobody"]


class BrokerError(Exception):
    """Something went wrong inside Penstock."""

    code: ClassVar[str] = "internal_error"
    who_can_act: ClassVar[Actor] = "operator"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or " ".join((type(self).__doc__ or "").split()))

    @property
    def message(self) -> str:
        return str(self.args[0])


# --- what the operator set up wrongly ---------------------------------------------------------------------------


class ConfigurationError(BrokerError):
    """A setting is missing or wrong."""

    code = "configuration_error"

    def __init__(self, variable: str, problem: str, remedy: str) -> None:
        self.variable, self.problem, self.remedy = variable, problem, remedy
        super().__init__(f"{variable}: {problem}. {remedy}")


class DescriptorError(BrokerError):
    """A provider descriptor cannot be used."""

    code = "invalid_descriptor"


class VaultError(BrokerError):
    """A sealed secret could not be opened."""

    code = "vault_error"


class KeyUnavailable(VaultError):
    """The key version that sealed this secret is missing or disabled."""

    code = "key_unavailable"


class StoreUnavailable(BrokerError):
    """The database cannot be reached; nothing was changed. Ask again shortly."""

    code = "store_unavailable"
    retryable = True


class ProviderMisconfigured(BrokerError):
    """The provider refuses our client credentials or configuration. An operator has to correct the integration."""

    code = "provider_misconfigured"
    retryable = True


# --- what the provider does -----------------------------------------------------------------------------------


class ProviderUnavailable(BrokerError):
    """The provider cannot be reached and no valid token is left. Ask again shortly."""

    code = "provider_unavailable"
    who_can_act = "nobody"
    retryable = True

    def __init__(self, message: str | None = None, *, retry_after: float = 2.0) -> None:
        self.retry_after = retry_after  # seconds
        super().__init__(message)


class EgressRefused(BrokerError):
    """The address is not one that Penstock may send to."""

    code = "egress_refused"


# --- what the caller can mend ----------------------------------------------------------------------------------


class CallerError(BrokerError):
    """The request cannot be served as it is."""

    code = "invalid_request"
    who_can_act = "caller"


class InvalidRequest(CallerError):
    """The request is malformed."""


class PayloadTooLarge(CallerError):
    """The request body is larger than 64 KiB; send less."""

    code = "payload_too_large"


class UnknownField(CallerError):
    """The request has a field that does not exist."""

    code = "unknown_field"


class Unauthorized(CallerError):
    """Invalid token"""

    code = "unauthorized"


class InsufficientScope(CallerError):
    """The credential lacks the scope this route requires."""

    code = "insufficient_scope"

    def __init__(self, scope: str) -> None:
        self.scope = scope
        super().__init__(f"This route requires {scope}; create an API key that has it.")


class NotFound(CallerError):
    """There is no such thing in this environment."""

    code = "entity_not_found"


class ConnectedAccountNotFound(CallerError):
    """No connected account of this owner and provider has that id."""

    code = "connected_account_not_found"


class AccountMismatch(CallerError):
    """The connection belongs to another provider account or instance than expected."""

    code = "account_mismatch"


class AccountSelectionRequired(CallerError):
    """Several connections match; name one with connected_account_id."""

    code = "account_selection_required"


class AlreadyConnected(CallerError):
    """This owner already has a connection to the provider; update or delete it first."""

    code = "already_connected"


class ConnectedAccountLimitReached(CallerError):
    """This owner has as many connections to the provider as are allowed."""

    code = "connected_account_limit_reached"


class MultipleConnectionsUnavailable(CallerError):
    """A second connection to this provider is not offered here."""

    code = "multiple_connections_unavailable"


class AuthMethodMismatch(CallerError):
    """The connection uses another authentication method than this endpoint serves."""

    code = "auth_method_mismatch"


class IntegrationUnusable(CallerError):
    """The integration is disabled or not completely configured."""

    code = "invalid_data_integration_state"


class IntegrationExists(CallerError):
    """An integration with this provider and ownership exists already."""

    code = "data_integration_exists"


class InvalidTokenCombination(CallerError):
    """These tokens cannot be imported together."""

    code = "invalid_token_combination"


class InvalidRefreshToken(CallerError):
    """The provider refused the refresh token."""

    code = "invalid_refresh_token"


class InvalidReturnTo(CallerError):
    """return_to is not one of the registered return URLs."""

    code = "invalid_return_to"


class ReturnToRequiresExactMatch(CallerError):
    """With code_challenge, return_to must equal a registered return URL exactly, without query or fragment."""

    code = "return_to_requires_exact_match"


class InvalidConnectCode(CallerError):
    """The connect code is unknown, used or expired; start the connection again."""

    code = "invalid_connect_code"


class BindingFailed(CallerError):
    """The verifier does not prove the session that started this connection; the code is used up."""

    code = "connection_could_not_be_verified"


class FilterRequired(CallerError):
    """A bulk operation needs at least one filter."""

    code = "filter_required"


class InvalidState(CallerError):
    """The connection is not in a state that allows this."""

    code = "invalid_state"


class IdempotencyKeyConflict(CallerError):
    """This Idempotency-Key was used with another request body."""

    code = "idempotency_key_conflict"


class RateLimited(CallerError):
    """Too many requests; slow down."""

    code = "rate_limit_exceeded"
    retryable = True

    def __init__(self, message: str | None = None, *, retry_after: float = 2.0) -> None:
        self.retry_after = retry_after  # seconds
        super().__init__(message)


# --- what ends one attempt to connect ---------------------------------------------------------------------------


class ConnectFailed(BrokerError):
    """The attempt to connect failed; `code` says why and travels to the application (pipes-api.md 5.3)."""

    who_can_act = "user"

    def __init__(
        self,
        error_code: str,
        message: str,
        *,
        provider_error: str | None = None,
        provider_error_description: str | None = None,
    ) -> None:
        self.error_code = error_code
        self.provider_error = provider_error
        self.provider_error_description = provider_error_description
        super().__init__(message)
