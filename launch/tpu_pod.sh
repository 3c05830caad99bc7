#!/usr/bin/env bash
# Runs a verb on all hosts of a TPU slice, from a machine that has gcloud:
#
#   TPU_NAME=my-pod ZONE=us-west4-a launch/tpu_pod.sh [--print] train \
#     --gin_file=gin/models/flan_t5_xl.gin ... --gin.MODEL_DIR='"/mnt/bucket/model"'
#
# Each host has this checkout in TPU_DIR (instructrec_jax in the login's home), with the extra [tpu]
# in its .venv, and sees the folders of the run under the same names (gcsfuse, NFS). It logs to
# LOG_DIR there. A verb whose work is not shared (build, report) runs on the first host alone.
#
# The hosts go on if the connection breaks; their logs tell how far they are. This stops a run,
# which saves first (the same command goes on from there):
#
#   gcloud compute tpus tpu-vm ssh my-pod --zone=us-west4-a --worker=all \
#     --command='pkill -TERM -x instructrec'
set -euo pipefail
# shellcheck source=launch/shared.sh
source "${BASH_SOURCE[0]%/*}/shared.sh"

need TPU_NAME my-pod
need ZONE us-west4-a
workers=all
if (($(processes_for 2 "$@") == 1)); then workers=0; fi
start="$(quoted cd "${TPU_DIR:-instructrec_jax}") &&"
if [[ -n "${LOG_DIR:-}" ]]; then start+=" $(quoted export "LOG_DIR=$LOG_DIR") &&"; fi
start+=" exec $(quoted launch/tpu_vm.sh "$@")"

command=(gcloud compute tpus tpu-vm ssh "$TPU_NAME" "--zone=$ZONE" "--worker=$workers")
command+=("--command=$start")
if [[ -n "$print" ]]; then
  quoted "${command[@]}"
  exit 0
fi
exec "${command[@]}"
