"""Load on any queue of messages, and a report of what it cost: for `wsqueue bench` and for comparisons.

A generator must be much cheaper than what it measures. So two processes of their own, one with all
publishers and one with all subscribers, write prebuilt bytes to plain sockets and check what comes by
comparing long stretches of memory; nothing in them happens per message, but for those that carry a time.

All messages of a run have one size and, but for those, one content, so that what a subscriber reads is
one record again and again. What it reads is compared with that, every byte of it.

What a system looks like on the wire is in a `Wire`; `V2Wire` and `ClassicWire` are ours. `run`
starts the two processes (`python -m wsqueue.tools.bench`), which share some counters with it, and drives
them through the phases.
"""
