"""The report of a node, as a status page, as metrics, and for other nodes and tools.

May import: net, config, report, protocol.
"""
