#!/usr/bin/env bash
# Trains on this machine's CPU. Arguments go to `instructrec train`:
#
#   launch/local_cpu.sh --gin_file=gin/models/t5_tiny.gin --gin_file=gin/mixtures/ml_100k.gin \
#     --gin_file=gin/runs/from_scratch.gin --gin.DATA_DIR='"runs/records"' \
#     --gin.MODEL_DIR='"runs/model"'
#
# NUM_DEVICES=8 splits the CPU into as many devices, to try out a sharded run.
set -euo pipefail

export JAX_PLATFORMS=cpu
if [[ -n "${NUM_DEVICES:-}" ]]; then
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${NUM_DEVICES}"
fi
exec "$(dirname "${BASH_SOURCE[0]}")/instructrec.sh" train "$@"
