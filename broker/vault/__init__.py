"""Envelope encryption: keyring and sealed blobs."""
