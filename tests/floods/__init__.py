"""Floods: what a peer may do to a node, measured: `python -m tests.floods --help`."""
