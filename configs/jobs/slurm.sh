#!/usr/bin/env bash
# Slurm: 8 nodes of 8 GPUs for Swallow 7B. From the project's directory:
#
#   sbatch configs/jobs/slurm.sh
#   sbatch --nodes=64 configs/jobs/slurm.sh configs/llm-jp-172b.toml
#
# Ten minutes before its time is over the run saves and stops, and the job is queued again; submitted again at any other
# time, it continues from the newest checkpoint. `scancel --signal=USR1 --batch JOB` stops it with a checkpoint, too.
#SBATCH --job-name=swallow
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=72:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

cd "$SLURM_SUBMIT_DIR"
module load cuda nccl openmpi # the Open MPI that the program was built with

config=${1:-configs/swallow-7b.toml}

hostfile=$(mktemp "$PWD/hostfile.$SLURM_JOB_ID.XXXX")
trap 'rm -f "$hostfile"' EXIT
scontrol show hostnames "$SLURM_JOB_NODELIST" | sed 's/$/ slots=8/' >"$hostfile"

# Open MPI starts the ranks through its own daemons on the nodes; srun is not used.
source configs/jobs/requeue.sh
run_and_requeue "$config" "scontrol requeue $SLURM_JOB_ID" \
    configs/jobs/mpirun.sh "$config" $((SLURM_JOB_NUM_NODES * 8)) "$hostfile"
