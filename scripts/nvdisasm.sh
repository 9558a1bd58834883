#!/bin/sh
# Fetches NVIDIA's disassembler (nvdisasm 13.5.37, which reads the cubins of NVRTC 12 and 13) from PyPI into
# target/nvdisasm, and prints its path: `NVDISASM=$(scripts/nvdisasm.sh) make test-exhaustive` then checks the order of
# the kernels' instructions. Needs python3 with pip, no root and no GPU. Without a network it says so, and prints
# nothing.
set -eu
cd "$(dirname "$0")/.."

wheels="$PWD/target/nvdisasm"
program="$wheels/nvidia/cu13/bin/nvdisasm"
if [ ! -e "$program" ]; then
    rm -rf "$wheels" "$wheels.part"
    mkdir -p "$PWD/target"
    if ! python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --target "$wheels.part" nvidia-cuda-nvdisasm==13.5.37 >&2; then
        rm -rf "$wheels.part"
        echo "nvdisasm: not installed: needs python3 with pip, and PyPI; the tests will NOT check the SASS" >&2
        exit 0
    fi
    chmod +x "$wheels.part/nvidia/cu13/bin/nvdisasm"
    mv "$wheels.part" "$wheels"
fi
echo "$program"
