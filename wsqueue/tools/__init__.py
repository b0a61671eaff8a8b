"""The programs behind the commands: a cluster on loopback, checks, benchmark, live views.

May import: nodes, client, monitoring, log, net, config, report, protocol.
"""
