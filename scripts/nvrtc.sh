#!/bin/sh
# usage: scripts/nvrtc.sh [VERSION...]      default: 13.0.88; `all`: those that the kernels' SASS is checked with
# Fetches NVIDIA's run-time compiler (NVRTC) from PyPI and prints the folder of its libraries; folders of several
# versions are joined by colons. `SWALLOW_CUDA_LIBS=$(scripts/nvrtc.sh) make test-all` compiles the CUDA kernels too.
# Needs python3 with pip, no root and no GPU. Without a network it says so and leaves out what it lacks, and the tests
# say what they skip.
set -eu
cd "$(dirname "$0")"

[ $# -gt 0 ] || set -- 13.0.88
[ "$*" != all ] || set -- 13.0.88 12.9.86 12.4.127
folders=
for version; do
    # The hashes of the wheels for x86_64 and aarch64.
    case $version in
        13.0.88)
            libs=nvidia/cu13/lib
            wheel=$(./wheel.sh nvidia-cuda-nvrtc==13.0.88 \
                ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575 \
                d27f20a0ca67a4bb34268a5e951033496c5b74870b868bacd046b1b8e0c3267b)
            ;;
        12.9.86)
            libs=nvidia/cuda_nvrtc/lib
            wheel=$(./wheel.sh nvidia-cuda-nvrtc-cu12==12.9.86 \
                210cf05005a447e29214e9ce50851e83fc5f4358df8b453155d5e1918094dcb4 \
                096d4de6bda726415dfaf3198d4f5c522b8e70139c97feef5cd2ca6d4cd9cead)
            ;;
        12.4.127)
            libs=nvidia/cuda_nvrtc/lib
            wheel=$(./wheel.sh nvidia-cuda-nvrtc-cu12==12.4.127 \
                a178759ebb095827bd30ef56598ec182b85547f1508941a3d560eb7ea1fbf338 \
                0eedf14185e04b76aa05b1fea04133e59f465b6f960c0cbf4e37c3cb6b0ea198)
            ;;
        *)
            echo "nvrtc.sh: there is no hash of NVRTC $version here" >&2
            exit 2
            ;;
    esac
    [ -z "$wheel" ] || folders="$folders${folders:+:}$wheel/$libs"
done
[ -z "$folders" ] || echo "$folders"
