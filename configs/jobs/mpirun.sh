#!/usr/bin/env bash
# One mpirun of swallow-engine: by hand, or from the job scripts beside this one.
#
#   configs/jobs/mpirun.sh CONFIG RANKS [HOSTFILE]
#
#   configs/jobs/mpirun.sh configs/demo.toml 2                     # on this machine
#   configs/jobs/mpirun.sh configs/swallow-7b.toml 64 hostfile     # on the hosts of the file, 8 ranks each
#
# HOSTFILE has a line `HOST slots=8` a node. A run that was ended is continued by the same command: the engine
# finds its newest checkpoint itself.
set -euo pipefail

if [[ $# -lt 2 || $# -gt 3 ]]; then
    echo "usage: $0 CONFIG RANKS [HOSTFILE]" >&2
    exit 2
fi
config=$1 ranks=$2 hostfile=${3:-}

engine=${SWALLOW_ENGINE:-swallow-engine} # the program, where it is not on the PATH
per_node=${RANKS_PER_NODE:-8}            # one a GPU
read -ra more <<<"${MPIRUN_FLAGS:-}"     # for this site: --mca btl_tcp_if_include bond0, --oversubscribe, ...

# Token files and shards of checkpoints are open together.
ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)"

# Open MPI does not bind ranks: a rank's threads may use all cores of its node, shared among its ranks.
flags=(-np "$ranks" --bind-to none)
if [[ -n $hostfile ]]; then
    # Ranks 0-7 on the first host and so on. The engine would set another order right by itself.
    flags+=(-hostfile "$hostfile" --map-by "ppr:$per_node:node")
fi

# For the ranks of other nodes; what is not set is not sent.
#   NCCL_DEBUG                   WARN: NCCL says why it fails
#   SWALLOW_*, XDG_CACHE_HOME    where the engine finds libraries and kernels, and keeps what it has compiled
#   NCCL_IB_GID_INDEX, NCCL_IB_TC, NCCL_IB_HCA   RoCE networks want these (3 and 106 at mdx and Sakura)
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
for name in PATH LD_LIBRARY_PATH VIRTUAL_ENV XDG_CACHE_HOME SWALLOW_CUDA_LIBS SWALLOW_KERNELS SWALLOW_PATIENCE_S NCCL_DEBUG NCCL_IB_GID_INDEX NCCL_IB_TC NCCL_IB_HCA; do
    if [[ -n ${!name:-} ]]; then
        flags+=(-x "$name")
    fi
done

exec mpirun "${flags[@]}" ${more[@]+"${more[@]}"} "$engine" train --config "$config"
