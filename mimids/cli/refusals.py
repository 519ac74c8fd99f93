"""What a command ends with when it does not do what was asked: exit 1, one line of why, one of what to do."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import IO, Any, Final

import click

from mimids.config import ConfigError
from mimids.errors import MimiError, StorageUnavailable
from mimids.ohttp.at_rest import KeyUnavailable
from mimids.store.engine.lock import Locked
from mimids.store.engine.migrate import SchemaRefused

REFUSED: Final = 1  # click gives 2 for usage


class CommandRefused(click.ClickException):
    """The command was understood and not done; `mend` says what to do about it."""

    exit_code = REFUSED

    def __init__(self, why: str, mend: str | None = None) -> None:
        super().__init__(why)
        self.mend = mend

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it on standard error."""
        click.echo(f"mimids: {self.message}", err=True)
        if self.mend:
            click.echo(f"  {self.mend}", err=True)


def or_refused(do: Callable[[], Any]) -> Any:
    """Run `do`; turn errors that an operator can fix into `CommandRefused`."""
    try:
        return do()
    except ConfigError as error:
        raise CommandRefused("the configuration cannot be used", "\n  ".join(error.faults)) from error
    except SchemaRefused as error:
        raise CommandRefused(str(error)) from error
    except KeyUnavailable as error:
        raise CommandRefused(
            str(error), "[ohttp] key_file names the file that the keys were encrypted under"
        ) from error
    except Locked as error:
        raise CommandRefused(
            str(error), "try again when it has ended; commands reach a running server by its socket"
        ) from error
    except StorageUnavailable as error:
        raise CommandRefused(
            str(error), "make room on the disk of data_dir: `mimids check` says how much there is"
        ) from error
    except MimiError as error:
        raise CommandRefused(str(error)) from error
    except sqlite3.OperationalError as error:
        raise CommandRefused(f"the database: {error}", "`mimids check` says more") from error
    except sqlite3.DatabaseError as error:
        if type(error) is not sqlite3.DatabaseError:
            raise  # ours: a statement that is wrong
        raise CommandRefused(
            f"the database: {error}", "`mimids check` says more; keep the file, and restore a backup"
        ) from error
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        raise CommandRefused(f"{what}{error.strerror or error}") from error
