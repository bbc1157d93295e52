"""Penstock's tests; a package, so that they share fixtures and servers by import."""
