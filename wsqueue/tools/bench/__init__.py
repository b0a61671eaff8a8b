"""The load generator for any message queue, and `wsqueue bench`, which uses it on a cluster of wsqueue.

A load generator must be much cheaper than the system that it measures. Therefore two worker processes, one
with all publishers and one with all subscribers, write prebuilt bytes to plain sockets, and check the bytes
that they read by comparing long stretches of memory. They do nothing per message, except for the few
messages that carry a time.

All messages of a run have the same size and, without a time, the same content. A subscriber therefore reads
the same record again and again, and every byte is compared with that record.

    workload    the load: topics, sizes, pace, window     records, report   checked and counted deliveries
    wire        the interface of a system on the wire     publishers, subscribers   the loops of the workers
    v2, classic, nodes, messages   wires of wsqueue       connection, counters      helpers of the workers
    runner, worker, usage   drives the worker processes (`python -m wsqueue.tools.bench`), measures nodes
    cluster, table, plot    `wsqueue bench`: runs the load on a cluster, prints and draws the report

The comparison of wsqueue with other systems (`bench/`) has wires of its own.
"""
