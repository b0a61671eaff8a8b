"""The status page and the JavaScript client, which a node serves."""
