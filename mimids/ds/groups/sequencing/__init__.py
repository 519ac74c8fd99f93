"""Sequencing: a message of a hub's group gets its place in a partition here, and nowhere else.

`transaction` takes a request's messages in order; `partition_writer` finds the partition of a key, or opens a detached
one if the key is unknown, and gives a repeat its first answer; `joins` finds the partition of an external commit;
`commits` opens the partition that a commit leads to; `repeats` adds the GroupInfo and Welcome that a repeated commit
brings; `refused_proposals` remembers refusals; `submitter` has the sender; `look_ahead` reads
before the transaction. (semantics: sequencing, partitions-and-forks)
"""

from mimids.ds.groups.sequencing.look_ahead import LookAhead
from mimids.ds.groups.sequencing.transaction import Changes, Outcome, SequencingTransaction

__all__ = ["Changes", "LookAhead", "Outcome", "SequencingTransaction"]
