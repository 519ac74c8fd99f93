"""Removed devices leave their groups: the provider proposes to remove their leaves (semantics: departures).

`provider_keys` has the keys that sign, `leaves` tells which leaves belong to removed devices, `searching` finds them in
a group, and `departures` is the job.
"""
