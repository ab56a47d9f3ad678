"""`python -m whetstone train …` is the same as `whetstone train …`."""

import sys

from whetstone.main import main

if __name__ == "__main__":
    sys.exit(main())
