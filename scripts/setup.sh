#!/bin/sh
# Installs what the build needs beside cargo: a C and C++ compiler, CMake and pkg-config (SentencePiece is
# compiled and linked statically), libclang (the MPI bindings are made from mpi.h) and Open MPI.
# Prints nothing and takes no time where everything is installed.
#
#   scripts/setup.sh          what the build needs
#   scripts/setup.sh mecab    MeCab and its dictionary too, for `tokenizer train --segment mecab` and its tests
set -eu

case "$*" in
    "" | mecab) ;;
    *)
        echo "setup: $*: the only argument is mecab" >&2
        exit 2
        ;;
esac

have() { command -v "$1" >/dev/null 2>&1; }

have_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return
    ldconfig -p 2>/dev/null | grep -q 'libclang[-.0-9]*\.so' && return
    for f in /usr/lib/llvm-*/lib/libclang.so* /usr/lib/llvm-*/lib/libclang-[0-9]*.so* /usr/lib*/libclang.so* \
        /opt/homebrew/opt/llvm/lib/libclang.dylib; do
        [ -e "$f" ] && return
    done
    return 1
}

if ! have cargo; then
    echo "setup: cargo is not in PATH; install Rust 1.95 or newer from https://rustup.rs" >&2
    exit 1
fi

missing=""
{ have cc && have c++; } || missing="$missing build-essential"
have cmake || missing="$missing cmake"
have pkg-config || missing="$missing pkg-config"
have_libclang || missing="$missing libclang-dev"
{ have mpicc && have mpirun; } || missing="$missing libopenmpi-dev openmpi-bin"
if [ "${1:-}" = mecab ]; then
    have mecab || missing="$missing mecab"
    [ -e /var/lib/mecab/dic/ipadic-utf8/sys.dic ] || missing="$missing mecab-ipadic-utf8"
fi
[ -z "$missing" ] && exit 0

if ! have apt-get; then
    echo "setup: these are missing, by their names in Debian:$missing" >&2
    echo "setup: install them with this system's package manager, then run make again" >&2
    exit 1
fi
sudo=""
if [ "$(id -u)" != 0 ]; then
    if ! have sudo; then
        echo "setup: as root, run: apt-get install$missing" >&2
        exit 1
    fi
    sudo="sudo"
fi
echo "setup: installing$missing"
$sudo apt-get update -qq
# shellcheck disable=SC2086  # a list of packages
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
