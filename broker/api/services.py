"""The use-cases that routes call; `app.py` puts them together, and nothing else holds them all."""

from __future__ import annotations

from dataclasses import dataclass

from broker.callers.idempotency import Idempotency
from broker.callers.keys import ApiKeys
from broker.connections.access import TokenAccess
from broker.connections.accounts import Accounts
from broker.connections.attempts import Attempts
from broker.connections.authorize import Authorize
from broker.connections.brake import Brake
from broker.connections.brakes import Brakes
from broker.connections.complete import Complete
from broker.connections.directory import Directory
from broker.connections.integrations import Integrations
from broker.connections.keepalive import KeepAlive
from broker.connections.notices import Notices
from broker.connections.providers import Providers
from broker.connections.receipts import Receipts
from broker.connections.reconcile import Reconciler
from broker.connections.restore import Restores
from broker.connections.revoke import Revoke
from broker.connections.rewrap import Rewrap
from broker.connections.supervisor import RefreshSupervisor
from broker.connections.upstream import UpstreamRevocation
from broker.settings import Settings
from broker.store.clock import DatabaseClock
from broker.store.handout import HandOuts
from broker.store.identity import Identity
from broker.store.postgres import Database
from broker.vault.keyring import FileKeyring
from broker.web.pages import Pages


@dataclass(frozen=True, kw_only=True)
class Services:
    """Everything a request can need."""

    settings: Settings
    database: Database
    identity: Identity
    clock: DatabaseClock
    keyring: FileKeyring
    api_keys: ApiKeys
    idempotency: Idempotency
    providers: Providers
    access: TokenAccess
    supervisor: RefreshSupervisor
    receipts: Receipts
    authorize: Authorize
    complete: Complete
    attempts: Attempts
    accounts: Accounts
    directory: Directory
    integrations: Integrations
    revoke: Revoke
    upstream: UpstreamRevocation
    rewrap: Rewrap
    reconciler: Reconciler
    brake: Brake
    brakes: Brakes
    keep_alive: KeepAlive
    notices: Notices
    restores: Restores
    hand_outs: HandOuts
    pages: Pages
