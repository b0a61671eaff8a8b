"""The worker groups of a consumer: who is lent which messages, and what is done.

May import: log, net, config, report, protocol.
"""
