"""`python -m textual_inversion` is the command line."""

from __future__ import annotations

import sys

from textual_inversion.cli import main

if __name__ == "__main__":
    sys.exit(main())
