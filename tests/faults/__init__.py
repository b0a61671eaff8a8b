"""The fault suite: seeded schedules of faults against a cluster, and a checker of its clients' histories."""
