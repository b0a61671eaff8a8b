"""The programs behind the commands: a cluster on loopback, checks, benchmark, live views.

May import: nodes, client, monitoring, groups, log, net, config, report, protocol.
"""
