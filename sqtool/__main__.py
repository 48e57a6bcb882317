"""`python -m sqtool` is the `sqtool` command."""

from __future__ import annotations

from sqtool.cli import main

if __name__ == "__main__":
    main()
