"""The catalog of providers: one descriptor each, and a hook module only where data cannot say it."""
