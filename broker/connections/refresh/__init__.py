"""Refreshes: one per need, and what becomes of each when something fails (reliability.md 3)."""
