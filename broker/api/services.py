"""The use-cases that routes call; `app.py` puts them together, and nothing else holds them all."""

from __future__ import annotations

from dataclasses import dataclass

from broker.callers.idempotency import Idempotency
from broker.callers.keys import ApiKeys
from broker.connections.access import TokenAccess
from broker.connections.accounts import Accounts
from broker.connections.connect.attempts import Attempts
from broker.connections.connect.authorize import Authorize
from broker.connections.connect.complete import Complete
from broker.connections.directory import Directory
from broker.connections.integrations import Integrations
from broker.connections.providers import Providers
from broker.connections.refresh.brake import Brake
from broker.connections.refresh.brakes import Brakes
from broker.connections.refresh.keepalive import KeepAlive
from broker.connections.refresh.notices import Notices
from broker.connections.refresh.receipts import Receipts
from broker.connections.refresh.reconcile import Reconciler
from broker.connections.refresh.replays import Replays
from broker.connections.refresh.restore import Restores
from broker.connections.refresh.supervisor import RefreshSupervisor
from broker.connections.revocation.revoke import Revoke
from broker.connections.revocation.upstream import UpstreamRevocation
from broker.connections.rewrap import Rewrap
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
    replays: Replays
    notices: Notices
    restores: Restores
    hand_outs: HandOuts
    pages: Pages
