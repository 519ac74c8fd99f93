"""The end of a command that is refused: exit code 1, one line that says why, and one line that says what to do."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable
from typing import IO, Any, Final

import click

from mimids import causes
from mimids.cli.showing import say
from mimids.config import ConfigError
from mimids.errors import MimiError, StorageUnavailable
from mimids.ohttp.at_rest import KeyUnavailable
from mimids.store.damage import RESTORE
from mimids.store.engine.lock import Locked
from mimids.store.engine.migrate import SchemaRefused

REFUSED: Final = 1  # click gives 2 for usage


class CommandRefused(click.ClickException):
    """The command was understood but not carried out; `fix` says what to do."""

    exit_code = REFUSED

    def __init__(self, why: str, fix: str | None = None) -> None:
        super().__init__(why)
        self.fix = fix

    def __str__(self) -> str:
        return self.message if self.fix is None else f"{self.message}; {self.fix}"

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message and the fix on standard error."""
        say(f"mimids: {self.message}", err=True)
        if self.fix:
            say(*(f"  {line.strip()}" for line in self.fix.split("\n")), err=True)


def or_refused(do: Callable[[], Any]) -> Any:
    """Run `do`; turn errors that an operator can fix into `CommandRefused`."""
    try:
        return do()
    except ConfigError as error:
        raise CommandRefused("the configuration is not valid", "\n  ".join(error.faults)) from error
    except SchemaRefused as error:
        raise CommandRefused(error.cause.what, error.cause.fix) from error
    except KeyUnavailable as error:
        raise CommandRefused(
            str(error), "set key_file in [ohttp] to the file with which the keys were encrypted"
        ) from error
    except Locked as error:
        raise CommandRefused(
            str(error), "stop that process if it is the server, or try again when it has ended"
        ) from error
    except StorageUnavailable as error:
        if error.damage:
            raise CommandRefused(f"the database is damaged: {error.damage}", RESTORE) from error
        raise CommandRefused(
            str(error), "free some space on the disk of data_dir: `mimids check` says how much there is"
        ) from error
    except MimiError as error:
        raise CommandRefused(str(error)) from error
    except sqlite3.OperationalError as error:
        raise CommandRefused(f"the database cannot be used: {error}", "run `mimids check` for details") from error
    except sqlite3.DatabaseError as error:
        if type(error) is not sqlite3.DatabaseError:
            raise  # a wrong SQL statement, which is our bug
        raise CommandRefused(f"the database cannot be read: {error}", RESTORE) from error
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise  # the reader of our output has gone, which click knows
        cause = causes.of_file(error)
        raise CommandRefused(cause.what, cause.fix) from error
