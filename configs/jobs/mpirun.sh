#!/usr/bin/env bash
# Starts swallow-engine with mpirun: by hand, or from the other job scripts of this folder.
#
#   configs/jobs/mpirun.sh CONFIG RANKS [HOSTFILE]
#
#   configs/jobs/mpirun.sh configs/demo.toml 2                     # on this machine
#   configs/jobs/mpirun.sh configs/swallow-7b.toml 64 hostfile     # on the hosts of the file, 8 ranks each
#
# HOSTFILE has a line `HOST slots=8` for each node. The same command continues a run that has ended or was interrupted:
# the engine finds its newest checkpoint itself.
set -euo pipefail

if [[ $# -lt 2 || $# -gt 3 ]]; then
    echo "usage: $0 CONFIG RANKS [HOSTFILE]" >&2
    exit 2
fi
config=$1 ranks=$2 hostfile=${3:-}

engine=${SWALLOW_ENGINE:-swallow-engine} # the program, if it is not on the PATH
per_node=${RANKS_PER_NODE:-8}            # one for each GPU
read -ra more <<<"${MPIRUN_FLAGS:-}"     # for this site: --mca btl_tcp_if_include bond0, --oversubscribe, ...

# Many token files and checkpoint shards are open at the same time.
ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)"

# Open MPI must not bind ranks to cores: the ranks of a node share all of its cores for their threads.
flags=(-np "$ranks" --bind-to none)
if [[ -n $hostfile ]]; then
    # Ranks 0-7 on the first host and so on. The engine corrects any other order by itself.
    flags+=(-hostfile "$hostfile" --map-by "ppr:$per_node:node")
fi

# Environment variables that are passed to the ranks of other nodes, if they are set.
#   NCCL_DEBUG                   WARN: NCCL prints why it fails
#   SWALLOW_*, XDG_CACHE_HOME    where the engine finds libraries and kernels, and caches compiled kernels
#   NCCL_IB_GID_INDEX, NCCL_IB_TC, NCCL_IB_HCA   needed on RoCE networks (the first two are 3 and 106 at mdx and Sakura)
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
passed=(PATH LD_LIBRARY_PATH VIRTUAL_ENV XDG_CACHE_HOME SWALLOW_CUDA_LIBS SWALLOW_KERNELS SWALLOW_PATIENCE_S NCCL_DEBUG)
passed+=(NCCL_IB_GID_INDEX NCCL_IB_TC NCCL_IB_HCA)
for name in "${passed[@]}"; do
    if [[ -n ${!name:-} ]]; then
        flags+=(-x "$name")
    fi
done

exec mpirun "${flags[@]}" ${more[@]+"${more[@]}"} "$engine" train --config "$config"
