"""The console script: whoever stops it while its modules are still loading gets an exit code, and no traceback."""

from __future__ import annotations

import sys
from typing import NoReturn

__all__ = ["run"]

_INTERRUPTED = 130


def run() -> NoReturn:
    """Load the command line and run it."""
    try:
        from modelgit.cli.main import run as run_main
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    run_main()
