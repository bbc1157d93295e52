"""Any descriptor as a local provider, in that provider's dialect: for demo, tests and app teams' CI."""
