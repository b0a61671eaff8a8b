"""`wsqueue top`: the state of all nodes of a cluster, on a terminal, in a pipe or as JSON."""

from .live import Top, is_screen, print_snapshots, print_text, watch
from .snapshot import ClusterSnapshot

__all__ = ["ClusterSnapshot", "Top", "is_screen", "print_snapshots", "print_text", "watch"]
