#!/usr/bin/env bash
# Runs a verb on Kubernetes, as a JobSet (jobset.yaml) of one pod a host:
#
#   docker build -f launch/Dockerfile --build-arg EXTRA=tpu -t REGISTRY/instructrec:tpu .
#   IMAGE=REGISTRY/instructrec:tpu ACCELERATOR=tpu TOPOLOGY=4x4 \
#     launch/kubernetes.sh [--print] train --gin_file=gin/models/flan_t5_xl.gin ... \
#     --gin.MODEL_DIR='"runs/model"'
#
# The cluster has the JobSet controller, and a volume claim CLAIM (instructrec-runs) that many pods
# may write, which holds the folder runs/: inputs, outputs and logs. Variables:
#
#   ACCELERATOR  tpu: HOSTS follow from TOPOLOGY (4x4), with CHIPS (4) each of the kind TPU
#                (tpu-v5-lite-podslice); gpu: HOSTS (1) with GPUS (8) each; cpu: HOSTS (1)
#   NAME         of the JobSet (instructrec)
#
# A pod that is preempted gets SIGTERM: the run saves and stops, all pods start again and go on from
# there. A verb whose work is not shared (build, report) runs on one host: take ACCELERATOR=cpu.
# shellcheck disable=SC2034  # variables are read by their names
set -euo pipefail
# shellcheck source=launch/shared.sh
source "${BASH_SOURCE[0]%/*}/shared.sh"

need IMAGE REGISTRY/instructrec:gpu
need ACCELERATOR gpu
NAME="${NAME:-instructrec}" CLAIM="${CLAIM:-instructrec-runs}" HOSTS="${HOSTS:-1}"
ANNOTATIONS="{}" SELECTOR="{}" SCRIPT="launch/local_cpu.sh"
case "$ACCELERATOR" in
  tpu)
    need TOPOLOGY 4x4
    HOSTS="$((${TOPOLOGY//x/ * } / ${CHIPS:=4}))" SCRIPT="launch/tpu_vm.sh"
    SELECTOR="{cloud.google.com/gke-tpu-accelerator: ${TPU:-tpu-v5-lite-podslice},"
    SELECTOR+=" cloud.google.com/gke-tpu-topology: $TOPOLOGY}"
    ANNOTATIONS="{alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool}"
    LIMITS="{google.com/tpu: $CHIPS}"
    ;;
  gpu) LIMITS="{nvidia.com/gpu: ${GPUS:-8}}" SCRIPT="launch/gpu.sh" ;;
  cpu) LIMITS="{}" ;;
  *)
    echo "$0: ACCELERATOR is $ACCELERATOR; expected tpu, gpu or cpu" >&2
    exit 2
    ;;
esac
if ((HOSTS < 1)); then
  echo "$0: $TOPOLOGY is less than a host of $CHIPS chips; set CHIPS to those of the machine" >&2
  exit 2
fi
HOSTS="$(processes_for "$HOSTS" "$@")"

# JSON, which YAML takes.
ARGUMENTS=""
for word in "$@"; do
  word="${word//\\/\\\\}" word="${word//$'\n'/\\n}"
  ARGUMENTS+=", \"${word//\"/\\\"}\""
done
ARGUMENTS="[${ARGUMENTS#, }]"

text="$(< "$LAUNCH/jobset.yaml")"
for name in NAME ANNOTATIONS IMAGE CLAIM HOSTS SELECTOR LIMITS SCRIPT ARGUMENTS; do
  text="${text//"<$name>"/"${!name}"}"
done
if [[ -n "$print" ]]; then
  printf "kubectl apply -f - << 'END'\n%s\nEND\n" "$text"
  exit 0
fi
exec kubectl apply -f - <<< "$text"
