"""`python tests/verb.py WORDS` is `instructrec WORDS`: a program that `forked` can start."""

import sys

from instructrec_jax.cli import main

if __name__ == "__main__":
    sys.exit(main.main(sys.argv[1:]))
