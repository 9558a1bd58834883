#!/bin/sh
# usage: scripts/wheel.sh PACKAGE==VERSION SHA256...
# Unpacks a wheel from PyPI, one per platform, whose SHA-256 is one of these, below target/wheels and prints the folder.
# A wheel that is there already is not fetched again; its folder's name has a hash of the arguments. Needs python3 with
# pip, no root. Without them, or without a network, it says so and prints nothing.
set -eu
cd "$(dirname "$0")/.."

folder="$PWD/target/wheels/$1-$(echo "$*" | sha256sum | cut -c1-16)"
if [ ! -e "$folder" ]; then
    part="$folder.$$"
    trap 'rm -rf "$part"' EXIT
    mkdir -p "$part"
    # Only a file of requirements can have hashes.
    package=$1
    shift
    { printf '%s' "$package" && printf ' --hash=sha256:%s' "$@"; } >"$part/requirements"
    if ! python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
        --target "$part/wheel" --requirement "$part/requirements" >&2; then
        echo "$package: not installed: needs python3 with pip, and PyPI; the tests will NOT use it" >&2
        exit 0
    fi
    # Another process may have been faster.
    mv -T "$part/wheel" "$folder" 2>/dev/null || [ -e "$folder" ]
fi
echo "$folder"
