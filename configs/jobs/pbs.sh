#!/usr/bin/env bash
# PBS: 8 nodes of 8 GPUs for Swallow 7B. From the project's directory:
#
#   qsub configs/jobs/pbs.sh
#   qsub -v CONFIG=configs/swallow-70b.toml -l select=32:ngpus=8 configs/jobs/pbs.sh
#
# PBS sends SIGTERM when the time is over, and most sites kill the job soon after: set train.stop_before in the
# configuration to ten minutes less than walltime. The run then saves and stops, and the job is submitted again;
# submitted at any other time, it continues from the newest checkpoint. Sites differ in `select` (ABCI 3.0: -q rt_HF
# -l select=8).
#PBS -N swallow
#PBS -l select=8:ngpus=8:mpiprocs=8
#PBS -l walltime=72:00:00
#PBS -j oe
set -euo pipefail

cd "$PBS_O_WORKDIR"
source /etc/profile.d/modules.sh
module load cuda nccl hpcx # the Open MPI that the program was built with

config=${CONFIG:-configs/swallow-7b.toml}

# The hostfile has one line for each node; PBS lists a host once for each process.
hostfile=$(mktemp "$PWD/hostfile.$PBS_JOBID.XXXX")
trap 'rm -f "$hostfile"' EXIT
sort -u "$PBS_NODEFILE" | sed 's/$/ slots=8/' >"$hostfile"
nodes=$(wc -l <"$hostfile")

# The next job gets the resources of this one, which qsub's flags may have set, as far as qstat tells them here.
flags="-q $PBS_QUEUE"
for resource in select walltime; do
    value=$({ qstat -f -w "$PBS_JOBID" 2>/dev/null || true; } | sed -n "s/^ *Resource_List\.$resource = //p")
    if [[ -n "$value" ]]; then flags+=" -l $resource=$value"; fi
done

source configs/jobs/requeue.sh
run_and_requeue "$config" "qsub $flags -v CONFIG=$config configs/jobs/pbs.sh" \
    configs/jobs/mpirun.sh "$config" $((nodes * 8)) "$hostfile"
