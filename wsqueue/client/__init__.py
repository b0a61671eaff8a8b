"""The asyncio client: publishes through any producer, subscribes at the consumer of each topic.

May import: net, config, protocol.
"""
