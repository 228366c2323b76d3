"""``python -m perseid.rendezvous serve``: the server with nothing but the standard library."""

import argparse
import sys

from perseid.errors import PerseidError
from perseid.rendezvous.server.command_line import configure, run


def main() -> int:
    """Run one action; errors of ours are one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m perseid.rendezvous", allow_abbrev=False)
    configure(parser)
    try:
        return run(parser.parse_args())
    except PerseidError as error:
        sys.stderr.write(f"perseid: {error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
