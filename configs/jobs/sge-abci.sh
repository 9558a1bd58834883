#!/usr/bin/env bash
# Grid Engine as on ABCI: 8 nodes of 8 A100 for Swallow 7B. From the project's directory:
#
#   qsub -g GROUP configs/jobs/sge-abci.sh                              # configs/swallow-7b.toml
#   qsub -g GROUP -l rt_AF=32 configs/jobs/sge-abci.sh configs/swallow-70b.toml
#
# `-notify` sends SIGUSR2 shortly before the job is killed, by default one minute: for larger checkpoints set
# train.stop_before in the configuration to ten minutes less than h_rt. The run then saves and stops, and the job is
# queued again (exit code 99); submitted at any other time, it continues from the newest checkpoint.
#$ -l rt_AF=8
#$ -l h_rt=72:00:00
#$ -notify
#$ -r y
#$ -j y
#$ -o logs/
#$ -cwd
set -euo pipefail

source /etc/profile.d/modules.sh
module load cuda nccl hpcx # Open MPI of HPC-X, the one that the program was built with

config=${1:-configs/swallow-7b.toml}

# The hostfile has one line for each node; Grid Engine lists a host once for each slot.
hostfile=$(mktemp "$PWD/hostfile.$JOB_ID.XXXX")
trap 'rm -f "$hostfile"' EXIT
sort -u "$SGE_JOB_HOSTLIST" | sed 's/$/ slots=8/' >"$hostfile"
nodes=$(wc -l <"$hostfile")

source configs/jobs/requeue.sh
run_and_requeue "$config" "exit 99" \
    configs/jobs/mpirun.sh "$config" $((nodes * 8)) "$hostfile"
