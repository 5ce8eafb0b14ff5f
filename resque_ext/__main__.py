"""`python -m resque_ext`: the command line, as `resque-ext`."""

import sys

from resque_ext.cli import main

if __name__ == "__main__":
    sys.exit(main())
