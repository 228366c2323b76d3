"""``python -m perseid``."""

import sys

# ``-m`` puts the current folder first: files there are no modules of ours.
if not sys.flags.safe_path and sys.path:
    del sys.path[0]

from perseid.cli import main

sys.exit(main())
