"""The log of each topic that a consumer keeps, in memory or in SQLite.

May import: config, report, protocol.
"""
