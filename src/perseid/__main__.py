"""``python -m perseid``."""

import sys

from perseid.cli import main

sys.exit(main())
