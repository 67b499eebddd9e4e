"""`python -m pixelgate_local` runs Pixelgate on this machine."""

import sys

from pixelgate_local.launcher import main

if __name__ == "__main__":
    sys.exit(main())
