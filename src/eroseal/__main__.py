"""`python -m eroseal`: the same program as `eroseal`."""

import sys

from eroseal.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
