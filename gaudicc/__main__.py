"""`python -m gaudicc` is the command `gaudicc`."""

import sys

from gaudicc.cli import main

sys.exit(main())
