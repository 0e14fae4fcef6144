"""`python -m subfit.cli`, as torchrun needs it."""

import sys

from subfit.cli.main import main

sys.exit(main())
