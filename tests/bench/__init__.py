"""The benchmark of the token route: `python -m tests.bench`, or `make bench`.

A target is one server to be measured (`target.py`), `targets.py` lists them, and `run.py` measures them in turn. The
server has a core to itself; the load and PostgreSQL have the other.
"""
