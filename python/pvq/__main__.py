"""``python -m pvq`` is the ``pvq`` command."""

import sys

from pvq.cli import main

if __name__ == "__main__":
    sys.exit(main())
