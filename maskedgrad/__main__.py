"""`python -m maskedgrad`."""

import sys

from maskedgrad.cli import main

if __name__ == "__main__":
    sys.exit(main())
