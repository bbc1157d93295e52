"""Connecting an account: the flow in the browser, from its link to a stored connection."""
