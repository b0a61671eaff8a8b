"""The values that a node reports about itself, the warnings in them, and their words.

May import: protocol.
"""
