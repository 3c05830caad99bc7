#!/usr/bin/env bash
# Trains on the GPUs of one SLURM node. Arguments go to `instructrec train`:
#
#   sbatch launch/slurm.sh --gin_file=gin/models/flan_t5_xl.gin ... --gin.MODEL_DIR='"/scratch/m"'
#
# The batch system sends SIGTERM before the time is up: the run saves and stops. Submit the same
# command again, and it goes on from there.
#SBATCH --job-name=instructrec
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=8
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail

# SLURM runs a copy of this file: the repository is where the job was submitted.
cd "${SLURM_SUBMIT_DIR:-.}"
exec srun launch/gpu.sh "$@"
