"""Penstock: a brokered third-party token vault. See README.md for the architecture on one screen."""

__version__ = "0.1.0"
