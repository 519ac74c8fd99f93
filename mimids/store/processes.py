"""The processes that serve this provider, and which devices are connected to which of them.

`engine/postgresql/member.py` writes the rows of processes.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from mimids.store import moved
from mimids.store.engine.transaction import Tx
from mimids.values import DeviceRow, Milliseconds


@attrs.frozen
class ProcessRow:
    """A process; both times are those of the database's clock."""

    name: str
    since: Milliseconds
    seen_at: Milliseconds
    runs_jobs: bool  # it runs the jobs that only one process may run
    lag_ms: int  # how long news of the others took to reach it, at `seen_at`


def every_process(tx: Tx) -> list[ProcessRow]:
    """Return all processes that were alive a moment ago; none for a provider in SQLite."""
    rows = tx.all("SELECT name, since, seen_at, runs_jobs, lag_ms FROM processes ORDER BY since, name")
    return [ProcessRow(name, since, seen_at, bool(runs_jobs), lag) for name, since, seen_at, runs_jobs, lag in rows]


# --- connected devices ------------------------------------------------------------------------------------------


def note_connected(tx: Tx, process: str, begun: Iterable[DeviceRow], ended: Iterable[DeviceRow]) -> None:
    """Record which devices are connected to a process now, and which are no longer."""
    tx.executemany(
        "DELETE FROM connected_devices WHERE device = ? AND process = ?", [(device, process) for device in ended]
    )
    tx.executemany(
        "INSERT INTO connected_devices (device, process) SELECT id, ? FROM devices WHERE id = ?"
        " ON CONFLICT (device, process) DO NOTHING",
        [(process, device) for device in begun],
    )


def is_connected_elsewhere(tx: Tx, device: DeviceRow, process: str) -> bool:
    """Tell whether a device is connected to another process that is alive."""
    query = (
        "SELECT 1 FROM connected_devices c JOIN processes p ON p.name = c.process"
        " WHERE c.device = ? AND c.process <> ? LIMIT 1"
    )
    return tx.one(query, (device, process)) is not None


def forget_connected(tx: Tx, process: str) -> None:
    """Delete the connections to a process that ends."""
    tx.execute("DELETE FROM connected_devices WHERE process = ?", (process,))


def forget_connected_to_ended(tx: Tx) -> None:
    """Delete the connections to processes that have ended."""
    tx.execute("DELETE FROM connected_devices WHERE process NOT IN (SELECT name FROM processes)")


# --- a database that was moved ----------------------------------------------------------------------------------


def is_numbered_elsewhere(tx: Tx) -> bool:
    """Tell whether stamps or cursors are higher than the present stamp, so that `begin_again` must be called."""
    present = moved.settled(tx)
    return (
        tx.one(
            "SELECT 1 FROM moved WHERE stamp > ?1 UNION ALL SELECT 1 FROM peers WHERE next_stamp > ?1"
            " UNION ALL SELECT 1 FROM push_subscriptions WHERE next_stamp > ?1"
            " UNION ALL SELECT 1 FROM removals WHERE next_stamp > ?1 LIMIT 1",
            (present,),
        )
        is not None
    )


def begin_again(tx: Tx) -> None:
    """Have everything checked again, because the stamps (`store.moved`) come from another database.

    Each cluster of PostgreSQL numbers its transactions from the start. All cursors are set to 0, even those that are
    not higher than the present stamp: a partition that such a cursor has not passed yet may get the stamp 0 here.
    """
    tx.execute("UPDATE moved SET stamp = 0 WHERE stamp > ?", (moved.settled(tx),))
    tx.execute("UPDATE peers SET next_stamp = 0 WHERE next_stamp > 0")
    tx.execute("UPDATE push_subscriptions SET next_stamp = 0 WHERE next_stamp > 0")
    tx.execute("UPDATE removals SET next_stamp = 0 WHERE next_stamp > 0")
