#!/usr/bin/env bash
# Runs every check of the CUDA kernels that needs a device, in parts of under nine minutes; `--help` describes them.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'TEXT'
usage: tests/gpu.sh [--again] [--seconds N] [PART...]      default: all parts that this machine can run, in this order
       tests/gpu.sh --take results.tar.gz                  unpacks results that were brought back from another machine

  build      the programs of the other parts, stripped, with the libraries and the Open MPI that they need, into
             target/gpu (needs cargo, no GPU)
  probes     each primitive of the kernels on the device, against its definition and against the emulator
  kernels    each kernel on the device, against its op on the CPU and against the emulator; twice, for the same bits
  memcheck   the same tests under compute-sanitizer: accesses out of bounds
  racecheck  the same tests under compute-sanitizer: races in shared memory
  train      whole runs in bf16 on one rank, against PyTorch's golden trajectories
  layouts    tensor, pipeline and data parallel ranks that share the device, each layout against one rank
  resume     runs that are interrupted and resumed, bit for bit; memory use as planned
  sm80       an A100's kernels, compiled for sm_90: their tests, and the golden trajectories
  step       full training steps, alternating with PyTorch's (benches/step.py; compared if python3 has PyTorch)
  trace      one step as a trace for Perfetto, with the share of time in which nothing was computed
  bench      every kernel's time (benches/kernels)
  peers      PyTorch's time at the same shapes (cuda/peers.py; needs a python3 with PyTorch)
  table      benches/results/<date>-<device>.md: all measurements beside the goals; results/rates.json: the rates of the
             device for `swallow-engine plan --calibrate` (needs python3, no GPU)

A part that is done is skipped until the programs change; --again repeats it. A part that runs out of time fails, and
continues where it stopped when it is started again. Results are written to target/gpu/results. If OUT names a folder,
the tables and results.tar.gz, which contains all results, are copied there.

On a machine with only a driver and Python's CUDA wheels: run `tests/gpu.sh build` on a machine with Rust, copy the
checkout with target/gpu, and run `tests/gpu.sh` or single parts. NVRTC, cuBLASLt and NCCL are found in the wheels of
the python3 in PATH. To continue on another machine, unpack the results with --take before target/gpu is copied.

If a machine is only available for ten minutes at a time, --seconds ends a call in time. In order of importance:

  tests/gpu.sh --seconds 570 train layouts resume probes kernels        correctness
  tests/gpu.sh --seconds 570 step                                       8B's width at micro-batch 2; call it again for
                                                                        the 1B model, and again for micro-batch 1
                                                                        (about 7 minutes each)
  tests/gpu.sh --seconds 570 trace sm80 bench                           where time goes, the A100's kernels, all kernels
  tests/gpu.sh --seconds 570 peers memcheck racecheck                   PyTorch's kernels; out of bounds, races

These times are estimates that nobody has measured yet. 25 minutes of a device (the first line, the second twice, the
third) cover everything but the comparison of single kernels.
TEXT
}

PARTS=(build probes kernels memcheck racecheck train layouts resume sm80 step trace bench peers table)
gpu=${GPU_DIR:-target/gpu}
results=$gpu/results
work=$gpu/work
tables=${GPU_TABLES:-benches/results}
# The time limit of a part in seconds, and the least time left with which a long measurement is started.
LIMIT=520
least=420
# The end of the whole call.
deadline=$((1 << 30))
again=
smoke=()
# A test of these scripts sets GPU_SMOKE: steps of a tiny model.
[ -z "${GPU_SMOKE:-}" ] || { smoke=(--smoke) && least=30; }

# -- the status of a part: 0 is green; $why says why it was skipped or what failed --

why=
skip() { why=$1; return 2; }
fail() { why=$1; return 1; }

have() { command -v "$1" >/dev/null 2>&1; }
has_device() { have nvidia-smi && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

need_device() {
    has_device || { skip "this machine has no GPU"; return; }
    [ -s "$gpu/manifest" ] ||
        { skip "$gpu is missing: run tests/gpu.sh build on a machine with cargo, and copy it here"; return; }
    about
    mkdir -p "$work"
    # Not every way of copying preserves file modes.
    chmod -f +x "$gpu"/{kernel-tests,bench,whole,swallow-engine} "$gpu"/openmpi/bin/* || true
}

ask() { nvidia-smi -i 0 "--query-gpu=$1" --format=csv,noheader; }

# Records device, date and commit. Results of other programs are deleted.
about() {
    grep -qs "^version	$(version)$" "$results/about" && return
    rm -rf "$results" && mkdir -p "$results"
    printf '%s\t%s\n' version "$(version)" date "$(date -u +%F)" device "$(ask name)" driver "$(ask driver_version)" \
        commit "$(sed -n 's/^commit //p' "$gpu/manifest")" \
        clocks "SM and memory at most $(ask clocks.max.sm,clocks.max.mem), power at most $(ask power.limit)" \
        >"$results/about"
}

# A hash of the programs: parts that were done with other programs must be done again.
version() { sha256sum "$gpu/manifest" 2>/dev/null | cut -c1-16; }

# -- the copied programs --

# The command prefix that starts one: with the copied libraries and Open MPI, restricted to this machine, and with the
# driver's libraries where containers have them. Compiled kernels and chosen algorithms are cached with the results.
at=$(realpath -m "$gpu")
carried=(
    env "LD_LIBRARY_PATH=$at/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}:/usr/local/nvidia/lib64"
    OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    "XDG_CACHE_HOME=$(realpath -m "$results")/cache" "SWALLOW_ENGINE=$at/swallow-engine"
)
[ ! -d "$gpu/openmpi" ] || carried+=(
    "PATH=$at/openmpi/bin:$PATH"
    "OPAL_PREFIX=$at/openmpi" "OPAL_BINDIR=$at/openmpi/bin" "OPAL_LIBDIR=$at/lib"
    "OPAL_PKGLIBDIR=$at/openmpi/lib/components" "OPAL_PKGDATADIR=$at/openmpi/share" "OPAL_SYSCONFDIR=$at/openmpi/etc"
    "PMIX_PREFIX=$at/openmpi" "PMIX_PKGLIBDIR=$at/openmpi/lib/pmix" "PMIX_PKGDATADIR=$at/openmpi/share"
    "PMIX_MCA_mca_base_param_files=$at/openmpi/etc/pmix.conf"
    "HWLOC_PLUGINS_PATH=$at/openmpi/lib/hwloc"
    OMPI_MCA_plm=isolated OMPI_MCA_pml=ob1 "OMPI_MCA_btl=self,vader" OMPI_MCA_btl_vader_single_copy_mechanism=none
)

# Seconds left for the current part.
until=0
left() {
    local end=$((until < deadline ? until : deadline))
    echo $((end > SECONDS ? end - SECONDS : 0))
}

# Runs a command with a time limit in seconds. Its output goes to a log, the end of which is printed on failure.
logged() {
    local log=$1 seconds=$2 code=0
    shift 2
    timeout -k 10 "$seconds" "$@" >"$log" 2>&1 || code=$?
    [ "$code" = 124 ] && echo "ended after $seconds s" >>"$log"
    [ "$code" = 0 ] || tail -n 40 "$log"
    return "$code"
}

# Runs a program's tests, for each name on the input in turn: a module (`probes::`) or a single test. Marks those done.
one_by_one() {
    local part=$1 program=$2 name log code exact green=0 failed='' late=''
    shift 2
    while read -r name; do
        log=$results/$part-${name//:/_}.log
        if ! done_before "$part-$name"; then
            if [ "$(left)" -lt 30 ]; then late+=" $name" && continue; fi
            code=0
            [[ $name == *:: ]] && exact=() || exact=(--exact)
            logged "$log" "$(left)" "$@" "$program" "$name" "${exact[@]}" </dev/null || code=$?
            if [ "$code" = 124 ] || [ "$code" = 137 ]; then late+=" $name" && continue; fi
            if [ "$code" != 0 ]; then failed+=" $name: $(failure "$log");" && continue; fi
            mark "$part-$name"
        fi
        green=$((green + 1))
    done
    why="test groups passed: $green"
    [ "$green" -gt 0 ] || [ -n "$failed$late" ] || { fail "$program has no such tests"; return; }
    [ -z "$failed$late" ] || fail "$why;$failed${late:+ no time was left for $late: call it again}"
}

# The first error: compute-sanitizer's finding, or the failed tests.
failure() {
    local found
    found=$(grep -m1 -oE '=+ +(Invalid|Misaligned|Race|Error|Program hit|Leaked).*' "$1" ||
        sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$1" | paste -sd ' ')
    echo "${found:-see $1}"
}

part_table() {
    have python3 || { skip "this machine has no python3"; return; }
    [ -n "$(cat "$results"/{bench,peers,step}.jsonl 2>/dev/null)" ] ||
        { skip "$results contains no measurements"; return; }
    local path program=()
    # The steps that were measured are simulated where the program is at hand.
    if [ -x "$gpu/swallow-engine" ]; then mkdir -p "$work" && program=("$(engine)"); fi
    if grep -qs '"machine"' "$results/bench.jsonl"; then
        python3 benches/rates.py "$results" "${program[@]}" || { fail "benches/rates.py"; return; }
    fi
    path=$(python3 benches/table.py "$results" "$tables") || { fail "benches/table.py"; return; }
    cp "$path" "$results/"
    python3 benches/goals.py "$results" || { fail "benches/goals.py"; return; }
    why=$path
}

# -- which parts are done --

done_before() {
    [ -z "$again" ] && [ -s "$results/done/$1" ] && [ "$(cat "$results/done/$1" 2>/dev/null)" = "$(version)" ]
}
mark() { mkdir -p "$results/done" && version >"$results/done/$1"; }

run() {
    local part=$1 code=0 state
    # cargo decides what must be rebuilt, and a table takes no time.
    if [[ $part != build && $part != table ]] && done_before "$part"; then
        echo "$part: done before"
        return 0
    fi
    why=
    echo "== $part"
    until=$((SECONDS + LIMIT))
    if [[ $part != build && $part != table && $(left) -lt 30 ]]; then
        fail "no time was left: call it again" || code=1
    else
        "part_$part" || code=$?
    fi
    state=$(state_of "$code")
    echo "$part: $state${why:+: $why}"
    [ "$code" = 0 ] && [ -d "$results" ] && mark "$part"
    if [[ -d $results && $part != build && $part != table ]]; then
        {
            grep -v "^$part	" "$results/status" 2>/dev/null || true
            printf '%s\t%s\n' "$part" "$state${why:+: $why}"
        } >"$results/status.new"
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

# Copies the results to $OUT, where only a few files may be brought back.
bring_back() {
    [ -n "${OUT:-}" ] && [ -d "$results" ] || return 0
    cp "$results"/{about,status,rates.json,{bench,peers,step}.jsonl} "$results"/*.md "$OUT/" 2>/dev/null || true
    tar -czf "$OUT/results.tar.gz" -C "$results" . 2>/dev/null || true
}

take() {
    rm -rf "$results" && mkdir -p "$results" && tar -xzf "$1" -C "$results" &&
        echo "gpu.sh: $results holds the results of $(sed -n 's/^device	//p' "$results/about")"
}

main() {
    local part green=0 failed=0 skipped=0 code parts=()
    while [ $# -gt 0 ]; do
        case $1 in
            --help | -h) usage && exit ;;
            --again) again=yes ;;
            --seconds) [[ ${2:-} =~ ^[0-9]+$ ]] || { echo "gpu.sh: --seconds ${2:-}: must be a number" >&2 && exit 2; }
                deadline=$2 && shift ;;
            --take) take "${2:?gpu.sh: --take needs a results.tar.gz}" && exit ;;
            *) [[ " ${PARTS[*]} " == *" $1 "* ]] ||
                { echo "gpu.sh: there is no part $1; the parts are ${PARTS[*]}" >&2 && exit 2; }
                parts+=("$1") ;;
        esac
        shift
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

for file in build kernels training; do
    source "tests/gpu/$file.sh"
done
main "$@"
