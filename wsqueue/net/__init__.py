"""Connections on the event loop: reads, writes, backpressure, keepalive, reconnecting, TLS.

May import: config, protocol.
"""
