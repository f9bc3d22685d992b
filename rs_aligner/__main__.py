"""`python -m rs_aligner`, which is the command `rs-aligner` where that is not installed."""

import sys

from rs_aligner.cli.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
