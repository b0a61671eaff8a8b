"""The asyncio client: publishing through any producer, subscribing at the consumer of a topic.

May import: net, config, protocol.
"""
