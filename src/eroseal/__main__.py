"""Where the program begins, as `eroseal` and as `python -m eroseal`.

Until it can clean up and say so, there is nothing to clean up: Ctrl-C then ends it as it ends any program, without
the interpreter's traceback.
"""

import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from eroseal.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
