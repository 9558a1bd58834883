#!/usr/bin/env bash
# The tests that take longer than continuous integration waits for: every planted bug of the kernels, streams that are
# delayed, the remaining golden runs of the CUDA backend. Writes the table benches/results/DATE-mutants.md.
set -euo pipefail
cd "$(dirname "$0")/.."

table="benches/results/$(date +%F)-mutants.md"
mkdir -p benches/results
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo test --release --workspace -- campaign --nocapture | tee "$log"
{
    echo "# Planted bugs and delayed streams, $(date +%F)"
    echo
    echo "Commit $(git rev-parse --short HEAD). Written by \`tests/mutants.sh\`."
    echo
    echo "| test | result |"
    echo "| --- | --- |"
    sed -nE 's/^test ([^ ]*campaign[^ ]*) \.\.\. ?(.*)$/| `\1` | \2 |/p' "$log" | sed 's/|  |$/| ok |/'
    echo
    echo "## Planted bugs (\`cuda/emulator/mutants.toml\`)"
    echo
    echo "| kernel | bug | seen by a test |"
    echo "| --- | --- | --- |"
    sed -nE 's/^.*(seen  |UNSEEN) ([a-z0-9_]+\.cuh?): (.*)$/| `\2` | \3 | \1 |/p' "$log" |
        sed 's/| seen   |$/| yes |/; s/| UNSEEN |$/| no, as listed |/' | sort
} >"$table"
echo "wrote $table"
