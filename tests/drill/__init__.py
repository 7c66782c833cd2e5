"""Fault drills: `make drill`, or `python -m tests.drill kill disk failover` for some of them."""
