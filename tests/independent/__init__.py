"""An implementation of protocol v2 by somebody who knew docs/protocol.md and tests/data/v2.json, and no code of ours.

It stays independent: fix it by the document alone.
"""
