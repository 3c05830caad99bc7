#!/usr/bin/env bash
# Trains on the chips of one TPU VM. Arguments go to `instructrec train`:
#
#   pip install -c constraints.txt -e '.[tpu]'
#   launch/tpu_vm.sh --gin_file=gin/models/flan_t5_xl.gin ... --gin.MODEL_DIR='"runs/model"'
#
# A preempted VM gets SIGTERM: the run saves and stops, and the same command goes on from there.
set -euo pipefail

# An error if there is no TPU, instead of a silent run on the CPU.
export JAX_PLATFORMS=tpu
exec "$(dirname "${BASH_SOURCE[0]}")/instructrec.sh" train "$@"
