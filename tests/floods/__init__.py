"""Measure floods of a node by its peers: `python -m tests.floods --help`."""
