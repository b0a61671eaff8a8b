"""The producer, the consumer, and the service that runs either: start, reload, drain, stop.

May import: monitoring, groups, log, net, config, report, protocol.
"""
