"""HTTP resources: decode, use-case, encode."""
