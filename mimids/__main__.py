"""`python -m mimids`."""

from mimids.cli import main

if __name__ == "__main__":
    main(prog_name="mimids")
