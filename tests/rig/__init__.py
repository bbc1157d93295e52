"""A running Penstock for tests: real sockets, real PostgreSQL, a hostile provider, a backend and a browser."""

from tests.rig.backend import Backend
from tests.rig.server import Penstock, running_penstock

__all__ = ["Backend", "Penstock", "running_penstock"]
