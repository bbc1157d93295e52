"""One Penstock and one hostile provider per module, and a backend that speaks to both, on trial for what they do."""

from tests.acceptance.fixtures import backend, catalog, limits, penstock, provider, store, trial, worker

__all__ = ["backend", "catalog", "limits", "penstock", "provider", "store", "trial", "worker"]
