"""The command line: it parses arguments, prints, and chooses exit codes.

May import: tools, nodes, client, monitoring, log, net, config, report, protocol.
"""
