#!/usr/bin/env bash
# Trains on a Cloud TPU VM. Arguments go to `instructrec train`.
#
# On the VM itself, with its own chips:
#
#   pip install -c constraints.txt -e '.[tpu]'
#   launch/tpu_vm.sh --gin_file=gin/models/flan_t5_xl.gin ... --gin.MODEL_DIR='"gs://bucket/run"'
#
# From your own machine, on every host of a pod slice; the repository lies in ~/instructrec on each:
#
#   TPU_NAME=my-pod ZONE=us-central2-b launch/tpu_vm.sh --gin_file=... --gin.MODEL_DIR=...
set -euo pipefail

if [[ -z "${TPU_NAME:-}" ]]; then
  # An error if there is no TPU, instead of a silent run on the CPU.
  export JAX_PLATFORMS=tpu
  exec instructrec train "$@"
fi

# Quoted once more, for the shell on the other side.
arguments="$(printf ' %q' "$@")"
exec gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="${ZONE:?set ZONE}" --worker=all \
  --command="cd instructrec && launch/tpu_vm.sh${arguments}"
