#!/usr/bin/env bash
# Starts swallow-engine with mpirun: by hand, or from the other job scripts of this folder.
#
#   configs/jobs/mpirun.sh CONFIG RANKS [HOSTFILE]
#
#   configs/jobs/mpirun.sh configs/demo.toml 2                     # on this machine
#   configs/jobs/mpirun.sh configs/swallow-7b.toml 64 hostfile     # on the hosts of the file, 8 ranks each
#
# A signal stops the run after its step, with a checkpoint: kill -USR1 the mpirun that this starts.
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

# Environment variables that are passed to the ranks of other nodes, if they are set: those that change results, on
# which all ranks must agree (docs/environment.md), where the engine finds libraries, kernels and its cache, and NCCL's.
# Open MPI passes on OMPI_MCA_* itself.
#   NCCL_DEBUG                   WARN: NCCL prints why it fails
#   NCCL_IB_GID_INDEX, NCCL_IB_TC, NCCL_IB_HCA   needed on RoCE networks (the first two are 3 and 106 at mdx and Sakura)
# NCCL_HOSTID and CUDA_VISIBLE_DEVICES may differ between nodes and are not passed.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
for name in $(compgen -e); do
    case $name in
    NCCL_HOSTID) ;;
    PATH | LD_LIBRARY_PATH | VIRTUAL_ENV | XDG_CACHE_HOME | GLIBC_TUNABLES | NVIDIA_TF32_OVERRIDE | \
        SWALLOW_* | NCCL_* | CUBLAS_* | UCC_* | MPIR_CVAR_* | CUDA_FORCE_* | CUDA_DISABLE_* | CUDA_DEVICE_*)
        if [[ -n ${!name} ]]; then
            flags+=(-x "$name")
        fi
        ;;
    esac
done

# After SIGTERM or SIGINT, Open MPI gives its ranks this many seconds to save before it kills them.
export OMPI_MCA_odls_base_sigkill_timeout=${OMPI_MCA_odls_base_sigkill_timeout:-300}

exec mpirun "${flags[@]}" ${more[@]+"${more[@]}"} "$engine" train --config "$config"
