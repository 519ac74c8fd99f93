"""The command line; its entry point is `mimids.cli:main`."""

from mimids.cli.main import main

__all__ = ["main"]
