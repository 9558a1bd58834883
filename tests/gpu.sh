#!/usr/bin/env bash
# Everything about the CUDA kernels that needs a device, in parts of under nine minutes; `--help` says more.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'TEXT'
usage: tests/gpu.sh [--again] [PART...]          default: all parts that this machine can do, in this order

  build      the programs of the other parts, stripped, and the libraries that they need, into target/gpu (needs cargo, no GPU)
  probes     each primitive of the kernels on the device: against its definition, and against the emulator
  kernels    each kernel on the device: against its op on the CPU, against the emulator, twice for the same bits
  memcheck   the same tests under compute-sanitizer: accesses outside, leaks of errors
  racecheck  the same: races in shared memory
  bench      every kernel's time (benches/kernels)
  peers      PyTorch at the same shapes (cuda/peers.py; needs a python3 with PyTorch)
  table      benches/results/<date>-<device>.md of what bench and peers have left (needs python3, no GPU)

A part that is done is left out until the programs change; --again does it again. A part of tests that has no time left ends as
failed, and goes on where it was when it is called again. The results lie in target/gpu/results; where OUT names a folder they are
copied there too.

On a machine with a driver, Python's CUDA wheels and nothing else: run `tests/gpu.sh build` where there is Rust, copy the checkout
with target/gpu there, and run `tests/gpu.sh`, or its parts one by one. NVRTC is found in the wheels of the python3 in PATH. To make
the table elsewhere, copy the results back to target/gpu/results and run `tests/gpu.sh table`.
TEXT
}

PARTS=(build probes kernels memcheck racecheck bench peers table)
gpu=${GPU_DIR:-target/gpu}
results=$gpu/results
tables=${GPU_TABLES:-benches/results}
# Of a part, in seconds.
LIMIT=520
again=

# -- what a part says: green is 0; why it is skipped, or what failed, is in $why --

why=
skip() { why=$1; return 2; }
fail() { why=$1; return 1; }

have() { command -v "$1" >/dev/null 2>&1; }
has_device() { have nvidia-smi && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

need_device() {
    has_device || { skip "there is no GPU here"; return; }
    [ -x "$gpu/kernels" ] && [ -x "$gpu/bench" ] || { skip "there is no $gpu: run tests/gpu.sh build where there is cargo, and copy it here"; return; }
    about
}

ask() { nvidia-smi -i 0 "--query-gpu=$1" --format=csv,noheader; }

# Which device, when, of which commit; what was measured of other programs goes.
about() {
    grep -qs "^version	$(version)$" "$results/about" && return
    rm -rf "$results" && mkdir -p "$results"
    printf '%s\t%s\n' version "$(version)" date "$(date -u +%F)" device "$(ask name)" driver "$(ask driver_version)" \
        commit "$(sed -n 's/^commit //p' "$gpu/manifest")" \
        clocks "SM and memory at most $(ask clocks.max.sm,clocks.max.mem), power at most $(ask power.limit)" >"$results/about"
}

# The binaries' hash: what was done with others must be done again.
version() { sha256sum "$gpu/manifest" 2>/dev/null | cut -c1-16; }

# -- build --

# Of what a program is linked with, these are everywhere; the rest is carried along.
EVERYWHERE='linux-vdso|ld-linux|libc\.so|libm\.so|libdl\.so|libpthread\.so|librt\.so|libresolv\.so|libutil\.so|libgcc_s|libstdc\+\+'

# The program that cargo makes of these arguments.
program() { cargo "$@" --no-run 2>&1 | tee /dev/stderr | sed -n 's/^ *Executable .*(\(.*\))$/\1/p'; }

part_build() {
    have cargo || { skip "there is no cargo here"; return; }
    rm -rf "${gpu:?}"/{kernels,bench,lib,manifest} && mkdir -p "$gpu/lib"
    local tests bench file
    tests=$(program test --release --workspace --test kernels)
    bench=$(program bench --bench kernels)
    [ -n "$tests" ] && [ -n "$bench" ] || { fail "cargo did not name its programs"; return; }
    { strip -o "$gpu/kernels" "$tests" && strip -o "$gpu/bench" "$bench"; } || { fail "the programs cannot be stripped"; return; }
    for file in $(ldd "$tests" "$bench" | awk '$2 == "=>" { print $3 }' | sort -u | grep -Ev "/($EVERYWHERE)"); do
        cp -L "$file" "$gpu/lib/" || { fail "$file cannot be copied"; return; }
    done
    manifest >"$gpu/manifest" || { fail "no manifest of $gpu"; return; }
    local size
    size=$(du -cm "$gpu"/{kernels,bench,lib,manifest} | tail -n 1 | cut -f1)
    why="$size MiB in $gpu"
    [ "$size" -le 64 ] || fail "$why, more than the 64 that are to be carried"
}

manifest() {
    local changed=
    git diff --quiet HEAD -- || changed=", with changes"
    echo "commit $(git rev-parse HEAD)$changed"
    (cd "$gpu" && sha256sum kernels bench lib/* 2>/dev/null)
}

# -- tests on the device --

# A program is started with what was carried along for it.
carried=(env "LD_LIBRARY_PATH=$gpu/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}")

# The modules of tests that run kernels on the device.
modules() {
    "${carried[@]}" "$gpu/kernels" --list | sed -n 's/^\([a-z0-9_]*\)::.*: test$/\1/p' | sort -u |
        grep -Evx 'alike|mutants|reports|hopper'
}

# Runs a command for so many seconds at most; its output goes to a log, and the end of it here where it fails.
logged() {
    local log=$1 seconds=$2 code=0
    shift 2
    timeout "$seconds" "$@" >"$log" 2>&1 || code=$?
    [ "$code" = 124 ] && echo "ended after $seconds s" >>"$log"
    [ "$code" = 0 ] || tail -n 40 "$log"
    return "$code"
}

# Runs a command on the tests of each module that is listed on the input, one module after another, and remembers those
# that are done.
by_module() {
    local part=$1 module log code green=0 failed='' late='' until=$((SECONDS + LIMIT))
    shift
    while read -r module; do
        log=$results/$part-$module.log
        if ! done_before "$part-$module"; then
            if [ $((until - SECONDS)) -lt 30 ]; then late+=" $module" && continue; fi
            code=0
            logged "$log" $((until - SECONDS)) "$@" "$gpu/kernels" "$module::" </dev/null || code=$?
            if [ "$code" = 124 ]; then late+=" $module" && continue; fi
            if [ "$code" != 0 ]; then failed+=" $module: $(failure "$log");" && continue; fi
            mark "$part-$module"
        fi
        green=$((green + 1))
    done
    why="$green modules of tests"
    [ -z "$failed$late" ] || fail "$why are green;$failed${late:+ no time was left for$late: call it again}"
}

# The first thing that went wrong: compute-sanitizer's finding, or the tests that failed.
failure() {
    local found
    found=$(grep -m1 -oE '=+ +(Invalid|Misaligned|Race|Error|Program hit|Leaked).*' "$1" ||
        sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$1" | paste -sd ' ')
    echo "${found:-see $1}"
}

part_probes() {
    need_device || return
    by_module probes "${carried[@]}" KERNELS_ON=both < <(modules | grep '^probes')
}

part_kernels() {
    need_device || return
    by_module kernels "${carried[@]}" KERNELS_ON=both < <(modules | grep -v '^probes')
}

# -- compute-sanitizer --

part_memcheck() { sanitize memcheck; }
part_racecheck() { sanitize racecheck; }

sanitize() {
    need_device || return
    local program
    program=$(sanitizer) || { skip "there is no compute-sanitizer here"; return; }
    refused "$program" "$1" && return 2
    by_module "$1" "${carried[@]}" KERNELS_ON=device RUST_TEST_THREADS=4 "$program" --tool "$1" --error-exitcode 9 < <(modules)
}

# Whether compute-sanitizer cannot work here: it is tried on the shortest of the tests.
refused() {
    local log=$results/$2-first.log said
    logged "$log" 120 "${carried[@]}" KERNELS_ON=device "$1" --tool "$2" "$gpu/kernels" every_thread_knows >/dev/null || true
    said=$(grep -m1 -E 'Device not supported|not supported on this|Unable to find|Failed to initialize' "$log") || return
    why="compute-sanitizer says: $said"
}

sanitizer() {
    local found
    for found in "$(command -v compute-sanitizer)" /usr/local/cuda*/bin/compute-sanitizer /opt/nvidia/*/*/target/linux*x64/compute-sanitizer; do
        [ -x "$found" ] && echo "$found" && return
    done
    return 1
}

# -- times --

part_bench() {
    need_device || return
    local measured=(CRITERION_HOME="$gpu/criterion" "$gpu/bench" --json "$results/bench.jsonl")
    logged "$results/bench.log" "$LIMIT" "${carried[@]}" "${measured[@]}" || { fail "see $results/bench.log"; return; }
    printf 'clocks after the benchmarks\tSM and memory at %s\n' "$(ask clocks.sm,clocks.mem)" >>"$results/about"
    grep ' us, ' "$results/bench.log"
    why="$(grep -c '"seconds"' "$results/bench.jsonl") times"
}

part_peers() {
    need_device || return
    python3 -c 'import torch' 2>/dev/null || { skip "the python3 in PATH has no PyTorch"; return; }
    logged "$results/peers.log" "$LIMIT" python3 cuda/peers.py --seconds $((LIMIT - 60)) --json "$results/peers.jsonl" || { fail "see $results/peers.log"; return; }
    cat "$results/peers.log"
    grep -qs '"seconds"' "$results/peers.jsonl" || { fail "nothing was measured: see $results/peers.log"; return; }
    why="$(grep -c '"seconds"' "$results/peers.jsonl") times, $(grep -c '"error"' "$results/peers.jsonl" || true) that could not be had"
}

part_table() {
    have python3 || { skip "there is no python3 here"; return; }
    [ -s "$results/bench.jsonl" ] || [ -s "$results/peers.jsonl" ] || { skip "nothing was measured in $results"; return; }
    local path
    path=$(python3 benches/table.py "$results" "$tables") || { fail "benches/table.py"; return; }
    cp "$path" "$results/"
    why=$path
}

# -- which parts are done --

done_before() { [ -z "$again" ] && [ -s "$results/done/$1" ] && [ "$(cat "$results/done/$1" 2>/dev/null)" = "$(version)" ]; }
mark() { mkdir -p "$results/done" && version >"$results/done/$1"; }

run() {
    local part=$1 code=0 state
    # Programs are built anew by cargo where they must be; a table is made in no time.
    if [[ $part != build && $part != table ]] && done_before "$part"; then
        echo "$part: done before"
        return 0
    fi
    why=
    echo "== $part"
    "part_$part" || code=$?
    state=$(state_of "$code")
    echo "$part: $state${why:+: $why}"
    [ "$code" = 0 ] && [ -d "$results" ] && mark "$part"
    if [[ -d $results && $part != build && $part != table ]]; then
        { grep -v "^$part	" "$results/status" 2>/dev/null || true; printf '%s\t%s\n' "$part" "$state${why:+: $why}"; } >"$results/status.new"
        mv "$results/status.new" "$results/status"
    fi
    return "$code"
}

state_of() {
    case $1 in
        0) echo green ;;
        2) echo skipped ;;
        *) echo FAILED ;;
    esac
}

# What is worth keeping where only a few files may come back.
bring_back() {
    [ -n "${OUT:-}" ] && [ -d "$results" ] || return 0
    cp "$results"/{about,status,bench.jsonl,peers.jsonl} "$results"/*.md "$OUT/" 2>/dev/null || true
    tar -czf "$OUT/logs.tar.gz" -C "$results" . 2>/dev/null || true
}

main() {
    local part green=0 failed=0 skipped=0 code parts=()
    for part in "$@"; do
        case $part in
            --help | -h) usage && exit ;;
            --again) again=yes ;;
            *) [[ " ${PARTS[*]} " == *" $part "* ]] || { echo "gpu.sh: there is no part $part; they are ${PARTS[*]}" >&2 && exit 2; }
               parts+=("$part") ;;
        esac
    done
    [ ${#parts[@]} -gt 0 ] || parts=("${PARTS[@]}")
    trap bring_back EXIT
    for part in "${parts[@]}"; do
        code=0
        run "$part" || code=$?
        case $code in
            0) green=$((green + 1)) ;;
            2) skipped=$((skipped + 1)) ;;
            *) failed=$((failed + 1)) ;;
        esac
    done
    echo "gpu.sh: $green green, $failed failed, $skipped skipped"
    [ "$failed" = 0 ]
}

main "$@"
