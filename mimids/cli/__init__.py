"""The command line: `mimids.cli:main`."""

from mimids.cli.main import main

__all__ = ["main"]
