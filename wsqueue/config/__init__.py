"""Configuration files: their keys, loading, pre-shared keys, addresses and checks.

May import: protocol.
"""
