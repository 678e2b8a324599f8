"""`python -m minikeye` is the command line."""

import sys

from minikeye.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
