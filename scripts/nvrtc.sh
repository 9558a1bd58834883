#!/bin/sh
# Fetches NVIDIA's run-time compiler (NVRTC, 13.0.88) from PyPI into target/cuda-wheels, and prints the folder of its
# libraries: `SWALLOW_CUDA_LIBS=$(scripts/nvrtc.sh) make test-all` then checks the CUDA kernels too. Needs python3 with
# pip, no root and no GPU. Without a network it says so, prints nothing, and the tests say what they skip.
set -eu
cd "$(dirname "$0")/.."

wheels="$PWD/target/cuda-wheels"
libs="$wheels/nvidia/cu13/lib"
if [ ! -e "$libs/libnvrtc.so.13" ]; then
    rm -rf "$wheels" "$wheels.part"
    mkdir -p "$PWD/target"
    if ! python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --target "$wheels.part" nvidia-cuda-nvrtc==13.0.88 >&2; then
        rm -rf "$wheels.part"
        echo "nvrtc: not installed: needs python3 with pip, and PyPI; the tests will NOT compile the CUDA kernels" >&2
        exit 0
    fi
    mv "$wheels.part" "$wheels"
fi
echo "$libs"
