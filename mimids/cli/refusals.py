"""The end of a command that is refused: exit code 1, one line that says why, one that says what to do."""

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
    """The command was understood but not carried out; `fix` says what to do."""

    exit_code = REFUSED

    def __init__(self, why: str, fix: str | None = None) -> None:
        super().__init__(why)
        self.fix = fix

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message and the fix on standard error."""
        click.echo(f"mimids: {self.message}", err=True)
        if self.fix:
            click.echo(f"  {self.fix}", err=True)


def or_refused(do: Callable[[], Any]) -> Any:
    """Run `do`; turn errors that an operator can fix into `CommandRefused`."""
    try:
        return do()
    except ConfigError as error:
        raise CommandRefused("the configuration is not valid", "\n  ".join(error.faults)) from error
    except SchemaRefused as error:
        raise CommandRefused(str(error)) from error
    except KeyUnavailable as error:
        raise CommandRefused(
            str(error), "set key_file in [ohttp] to the file with which the keys were encrypted"
        ) from error
    except Locked as error:
        raise CommandRefused(
            str(error), "try again when that process has ended; commands reach a running server by its socket"
        ) from error
    except StorageUnavailable as error:
        raise CommandRefused(
            str(error), "free some space on the disk of data_dir: `mimids check` says how much there is"
        ) from error
    except MimiError as error:
        raise CommandRefused(str(error)) from error
    except sqlite3.OperationalError as error:
        raise CommandRefused(f"the database cannot be used: {error}", "run `mimids check` for details") from error
    except sqlite3.DatabaseError as error:
        if type(error) is not sqlite3.DatabaseError:
            raise  # a bug of ours: a wrong statement
        raise CommandRefused(
            f"the database cannot be read: {error}", "run `mimids check`; keep the file, and restore a backup"
        ) from error
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        raise CommandRefused(f"{what}{error.strerror or error}") from error
