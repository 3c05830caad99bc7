#!/usr/bin/env bash
# Runs a verb on GPU nodes of a SLURM cluster, one process a node. From the checkout's folder:
#
#   sbatch --nodes=2 launch/slurm.sh train --gin_file=gin/models/flan_t5_xl.gin ... \
#     --gin.MODEL_DIR='"/scratch/model"'
#   launch/slurm.sh --print train ...
#
# Before the time is up, SLURM sends SIGTERM: the run saves and stops, and this job queues itself
# again, to go on from there. A verb whose work is not shared (build, report) runs on one node.
#SBATCH --job-name=instructrec
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# SLURM runs a copy of this file: the checkout is where the job was submitted.
cd "${SLURM_SUBMIT_DIR:-.}"
# shellcheck source=launch/shared.sh
source launch/shared.sh

nodes="$(processes_for "${SLURM_JOB_NUM_NODES:-1}" "$@")"
command=(srun "--nodes=$nodes" "--ntasks=$nodes" --kill-on-bad-exit=1 --cpu-bind=none)
command+=(launch/gpu.sh "$@")
export EXIT_CODE_IF_STOPPED="$STOPPED"
if [[ -n "$print" ]]; then
  quoted "${command[@]}"
  echo "# on each of $nodes nodes:"
  launch/gpu.sh --print "$@" | sed 's/^/# /'
  echo "# after exit code $STOPPED (stopped before the time was up): scontrol requeue JOB"
  exit 0
fi
code=0
"${command[@]}" || code="$?"
if ((code == STOPPED)); then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
