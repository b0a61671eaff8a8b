"""The log of each topic: of a consumer, in memory or in SQLite, or of all, in an engine.

May import: net, config, report, protocol.
"""
