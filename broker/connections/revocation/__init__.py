"""Ending access: here at once, at the provider by a job, one connection or thousands."""
