#!/usr/bin/env bash
# Runs a verb on the chips of this TPU VM:
#
#   pip install -c constraints.txt -e '.[tpu]'
#   launch/tpu_vm.sh [--print] train --gin_file=gin/models/flan_t5_xl.gin ... \
#     --gin.MODEL_DIR='"runs/model"'
#
# A preempted VM gets SIGTERM: the run saves and stops, and the same command goes on from there.
# On a slice of several hosts all have to run it: launch/tpu_pod.sh.
set -euo pipefail

# An error if there is no TPU, instead of a silent run on the CPU.
export JAX_PLATFORMS=tpu
exec "${BASH_SOURCE[0]%/*}/instructrec.sh" "$@"
