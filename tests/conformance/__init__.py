"""Conformance checks of protocol v2 that another implementation runs against itself: see `__main__`."""
