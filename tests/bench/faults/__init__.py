"""The benchmark under faults: `python -m tests.bench.faults`, or `make bench-faults`.

A simulated day (`day.py`) of connections of every rotation class with exaggerated faults, Penstock's real engine beside
a naive strategy; a stampede of callers on one connection (`stampede.py`); and a herd that expires at once (`drain.py`).
"""
