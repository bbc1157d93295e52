"""The penstock command, one file per group; each calls the use-cases that the API calls."""
