#!/usr/bin/env bash
# Runs the `instructrec` command in one process; the scripts of all places end here:
#
#   launch/instructrec.sh [--print] VERB FLAG ...
#
# The command is the one on PATH, else the one of this checkout's .venv. What it says goes to the
# file LOG_DIR/VERB.HOST.PROCESS.log too (LOG_DIR: runs/logs). SIGTERM reaches the command, which
# saves, ends with exit code 0, and goes on when it is started again. A queue that starts again only
# what has failed sets EXIT_CODE_IF_STOPPED=143, the exit code to give in place of that 0.
set -euo pipefail
# shellcheck source=launch/shared.sh
source "${BASH_SOURCE[0]%/*}/shared.sh"

command="$LAUNCH/../.venv/bin/instructrec"
if found="$(command -v instructrec)"; then
  command="$found"
elif [[ ! -x "$command" ]]; then
  echo "the command instructrec is not on PATH, and $command is not there:" \
    "run 'source .venv/bin/activate' where it was installed, or 'pip install -e .' here" >&2
  exit 127
fi
folder="${LOG_DIR:-runs/logs}"
log="$folder/$(verb_of "$@").${HOSTNAME:-host}.${JAX_PROCESS_ID:-${SLURM_PROCID:-0}}.log"

if [[ -n "$print" ]]; then
  settings=()
  for name in JAX_PLATFORMS JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES JAX_PROCESS_ID XLA_FLAGS \
    XLA_PYTHON_CLIENT_MEM_FRACTION; do
    if [[ -n "${!name:-}" ]]; then settings+=("$name=${!name}"); fi
  done
  quoted env "${settings[@]}" "$command" "$@"
  echo "# its output also goes to $log"
  exit 0
fi

mkdir -p "$folder"
# What copies the output outlives the signal (to all processes of a job), and a broken connection.
exec > >(trap '' TERM INT HUP && exec tee -ap "$log")
copies=("$!")
exec 2> >(trap '' TERM INT HUP && exec tee -ap "$log" >&2)
copies+=("$!")
if [[ -z "${EXIT_CODE_IF_STOPPED:-}" ]]; then exec "$command" "$@"; fi

"$command" "$@" &
supervise "$!"
if [[ -n "$asked" && "$code" == 0 ]]; then code="$EXIT_CODE_IF_STOPPED"; fi
exec >&- 2>&-
wait "${copies[@]}" || true # for the last lines: a container ends with this process
exit "$code"
