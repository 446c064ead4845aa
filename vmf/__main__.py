"""`python -m vmf` is the `vmf` command."""

import sys

from vmf.cli.main import main

sys.exit(main())
