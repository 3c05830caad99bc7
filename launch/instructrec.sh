#!/usr/bin/env bash
# Runs the `instructrec` command: the one on PATH, else the one of this checkout's .venv.
set -euo pipefail

own="$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/instructrec"
if command -v instructrec > /dev/null; then
  exec instructrec "$@"
elif [[ -x "$own" ]]; then
  exec "$own" "$@"
fi
echo "the command instructrec is not on PATH, and $own is not there:" \
  "run 'source .venv/bin/activate' where it was installed, or 'pip install -e .' here" >&2
exit 127
