"""The same servers and the same judge as the acceptance tests have."""

from tests.acceptance.fixtures import backend, catalog, limits, penstock, provider, store, trial, worker

__all__ = ["backend", "catalog", "limits", "penstock", "provider", "store", "trial", "worker"]
