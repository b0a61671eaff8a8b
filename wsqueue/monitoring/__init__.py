"""The report of a node, and its ways out: status page, metrics, questions of other nodes.

May import: net, config, report, protocol.
"""
