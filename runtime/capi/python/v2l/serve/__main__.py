"""``python -m v2l.serve ENGINES`` is ``v2l serve ENGINES``."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
