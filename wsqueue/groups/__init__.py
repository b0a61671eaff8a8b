"""The worker groups of a consumer: which messages are lent to whom, and which are done.

May import: log, net, config, report, protocol.
"""
