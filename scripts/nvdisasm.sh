#!/bin/sh
# Fetches NVIDIA's disassembler (nvdisasm 13.5.37, which reads the cubins of NVRTC 12 and 13) from PyPI and prints its
# path: `NVDISASM=$(scripts/nvdisasm.sh) NVRTCS=$(scripts/nvrtc.sh all) make test-exhaustive` then checks the kernels'
# instructions. Needs python3 with pip, no root and no GPU. Without a network it says so, and prints nothing.
set -eu
cd "$(dirname "$0")"

# The hashes of the wheels for x86_64 and aarch64.
wheel=$(./wheel.sh nvidia-cuda-nvdisasm==13.5.37 \
    d3fdbdd49fa53e2e4aacd3db8259d052bd2b049ececdcb69e92e083c6728e7ca \
    a3a8248074edb9fba63b74c38a5416b712a91ab09e70b8ab37186c3d293fc605)
[ -z "$wheel" ] || chmod +x "$wheel/nvidia/cu13/bin/nvdisasm"
[ -z "$wheel" ] || echo "$wheel/nvidia/cu13/bin/nvdisasm"
