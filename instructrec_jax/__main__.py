"""`python -m instructrec_jax` is the `instructrec` command."""

import sys

from instructrec_jax.cli.main import main

sys.exit(main())
