#!/usr/bin/env bash
# The fault campaign (docs/testing.md): builds it and the program, and disturbs them.
#
#   tests/campaign.sh --bounded       some 60 faults, at most 4 minutes: a part of make test-exhaustive
#   tests/campaign.sh --table N       N faults, and their table in docs/operations.md: make campaign
#   tests/campaign.sh ARGUMENTS...    what is asked for: --seed 1 --only power --number 17
set -euo pipefail
cd "$(dirname "$0")/.."

# Apart, so that the program has the features of its dependencies that it has in other builds.
cargo build --release
cargo build --release -p campaign -p campaign_shim
campaign=${CARGO_TARGET_DIR:-target}/release/campaign
case "${1-}" in
--bounded) exec "$campaign" --faults 45 --jobs 2 --minutes 4 ;;
--table) ;;
*) exec "$campaign" "$@" ;;
esac

table=$(mktemp)
trap 'rm -f "$table"' EXIT
code=0
"$campaign" --faults "$2" --jobs 2 --table "$table" || code=$?
[ -s "$table" ] || exit "$code"
commit=$(git rev-parse --short HEAD)
git diff --quiet HEAD || commit="$commit with changes"
page=docs/operations.md
{
    sed '/<!-- campaign: begin -->/q' "$page"
    echo
    echo "$(date +%F), commit $commit, $(nproc) cores:"
    echo
    cat "$table"
    echo
    sed -n '/<!-- campaign: end -->/,$p' "$page"
} >"$table.page"
mv "$table.page" "$page"
echo "wrote the table of $page"
exit "$code"
