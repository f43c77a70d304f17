"""`python -m ldae_fast.cli`: what `ldae` is where the command is not on the path."""

import sys

from . import main

sys.exit(main())
