"""Quotas: how much of the hub's storage one sender may hold at one time (semantics: limits-and-retention).

A sender is a device of ours or another provider, and only its own use counts against it.
"""

from __future__ import annotations

from mimids.config import Limits
from mimids.errors import QuotaExceeded
from mimids.store import openers
from mimids.store.engine.transaction import Tx


class SenderQuotas:
    """The quotas of one sender within one transaction; a limit of 0 means no limit."""

    def __init__(self, tx: Tx, limits: Limits, provider: int, device: int | None) -> None:
        self._tx = tx
        self._limits = limits
        self._provider = provider
        self._device = device  # None if the sender is another provider

    def check_detached_partitions(self) -> None:
        """Raise `QuotaExceeded` if the sender may open no further detached partition."""
        used = openers.count_detached(self._tx, self._provider, self._device)
        if self._device is None:
            _check("provider_detached_partitions", self._limits.provider_detached_partitions, used)
        else:
            _check("device_detached_partitions", self._limits.device_detached_partitions, used)

    def check_branches(self, group: int) -> None:
        """Raise `QuotaExceeded` if the sender has too many branches in the group that carry no message yet."""
        used = openers.count_idle_branches(self._tx, group, self._provider, self._device)
        if self._device is None:
            _check("provider_branches", self._limits.provider_branches, used)
        else:
            _check("device_branches", self._limits.device_branches, used)

    def group_infos_to_drop(self, group: int) -> list[tuple[int, int]]:
        """Return partition row and commit seq of each GroupInfo beyond the sender's quota of octets, newest first.

        Only branches that carry no message count: a branch that members use keeps its GroupInfo.
        """
        left = self._limits.provider_branch_bytes if self._device is None else self._limits.device_branch_bytes
        beyond = []
        for row, opened_by, octets in openers.idle_group_infos(self._tx, group, self._provider, self._device):
            left -= octets
            if left < 0:
                beyond.append((row, opened_by))
        return beyond


def _check(limit: str, allowed: int, used: int) -> None:
    if allowed and used >= allowed:
        raise QuotaExceeded(limit)
