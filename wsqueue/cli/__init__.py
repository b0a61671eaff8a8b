"""The command line: it parses arguments, prints, and chooses exit codes.

May import: tools, nodes, client, monitoring, groups, log, net, config, report, protocol.
"""
