#!/usr/bin/env bash
# Runs a verb on this machine's CPU:
#
#   launch/local_cpu.sh [--print] train --gin_file=gin/models/t5_tiny.gin \
#     --gin_file=gin/mixtures/ml_100k.gin --gin_file=gin/runs/from_scratch.gin \
#     --gin.DATA_DIR='"runs/records"' --gin.MODEL_DIR='"runs/model"'
#
# NUM_DEVICES=8 splits the CPU into as many devices, to try out a sharded run. NUM_PROCESSES=2
# starts as many processes, each with its devices, as if they were hosts; train, eval, score and
# generate share their work.
set -euo pipefail
# shellcheck source=launch/shared.sh
source "${BASH_SOURCE[0]%/*}/shared.sh"

export JAX_PLATFORMS=cpu
if [[ -n "${NUM_DEVICES:-}" ]]; then
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${NUM_DEVICES}"
fi
number="$(processes_for "${NUM_PROCESSES:-1}" "$@")"
if ((number == 1)); then exec "$LAUNCH/instructrec.sh" ${print:+"$print"} "$@"; fi

export JAX_COORDINATOR_ADDRESS="127.0.0.1:${COORDINATOR_PORT:-$((20000 + $$ % 10000))}"
export JAX_NUM_PROCESSES="$number"
children=()
for ((id = 0; id < number; id++)); do
  export JAX_PROCESS_ID="$id"
  if [[ -n "$print" ]]; then
    "$LAUNCH/instructrec.sh" --print "$@" | sed '1s/$/ \&/'
  else
    "$LAUNCH/instructrec.sh" "$@" &
    children+=("$!")
  fi
done
if [[ -n "$print" ]]; then
  echo wait
  exit 0
fi
supervise "${children[@]}"
exit "$code"
