#!/usr/bin/env bash
# Runs a verb on all GPUs of this machine, in one process:
#
#   pip install -c constraints.txt -e '.[gpu]'
#   launch/gpu.sh [--print] train --gin_file=gin/models/flan_t5_xl.gin ... \
#     --gin.MODEL_DIR='"runs/model"'
#
# CUDA_VISIBLE_DEVICES chooses among the GPUs.
set -euo pipefail

# An error if there is no GPU, instead of a silent run on the CPU.
export JAX_PLATFORMS=cuda
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
exec "${BASH_SOURCE[0]%/*}/instructrec.sh" "$@"
