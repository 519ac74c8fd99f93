"""Sequencing: the one place where a message becomes part of a hub's partition.

(semantics: sequencing, partitions-and-forks)
"""

from mimids.ds.groups.sequencing.transaction import Changes, Outcome, SequencingTransaction

__all__ = ["Changes", "Outcome", "SequencingTransaction"]
