"""The wire protocol, without I/O and clocks: bytes in, events out; packets in, bytes out.

May import: nothing else of wsqueue but errors.
"""
