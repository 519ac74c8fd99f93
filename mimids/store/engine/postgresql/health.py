"""The state of a PostgreSQL server: version, clock, and settings for the durability and the times of commits."""

from __future__ import annotations

from contextlib import closing

import attrs

from mimids.store.engine.postgresql.connection import connect
from mimids.values import Milliseconds


@attrs.frozen
class Health:
    """The state of a server of PostgreSQL."""

    version: str
    durable: bool  # an acknowledged write survives a crash of the machine
    standbys: str  # the standbys for which a write waits (synchronous_standby_names); "": for none
    now: Milliseconds
    keeps_times: bool  # the server stores when each transaction was committed (track_commit_timestamp)


def health_of(url: str) -> Health:
    """Ask the server; raise `psycopg.Error` if it cannot be reached."""
    with closing(connect(url)) as connection:
        found = connection.execute(
            "SELECT current_setting('server_version'), current_setting('fsync') = 'on'"
            " AND current_setting('full_page_writes') = 'on' AND current_setting('synchronous_commit') <> 'off',"
            " CASE WHEN current_setting('synchronous_commit') IN ('off', 'local') THEN ''"
            " ELSE current_setting('synchronous_standby_names') END,"
            " CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT),"
            " current_setting('track_commit_timestamp') = 'on'"
        ).fetchone()
    version, durable, standbys, now, keeps_times = found or ("", False, "", 0, False)
    return Health(version, bool(durable), standbys, Milliseconds(now), bool(keeps_times))
