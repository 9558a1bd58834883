# shellcheck shell=bash disable=SC2154,SC2034
# Part of tests/gpu.sh: the kernels on the device, each compared with its op, and their times.

# The modules of the kernels' tests that can run on a device.
modules() {
    "${carried[@]}" "$gpu/kernel-tests" --list | sed -n 's/^\([a-z0-9_]*::\).*: test$/\1/p' | sort -u |
        grep -Evx '(alike|mutants|reports|hopper)::'
}

part_probes() {
    need_device || return
    one_by_one probes "$gpu/kernel-tests" "${carried[@]}" KERNELS_ON=both < <(modules | grep '^probes')
}

part_kernels() {
    need_device || return
    one_by_one kernels "$gpu/kernel-tests" "${carried[@]}" KERNELS_ON=both < <(modules | grep -v '^probes')
}

# The A100's kernels, compiled for this device, which does not load a cubin for sm_80.
part_sm80() {
    need_device || return
    local capability pack=$work/sm_90 built=$results/sm80-pack.log checked=$results/sm80-check.log
    capability=$(ask compute_cap)
    if [ "$capability" != 9.0 ]; then
        skip "the device runs the kernels for sm_80 anyway: its compute capability is $capability"
        return
    fi
    logged "$built" "$(left)" "${carried[@]}" "$gpu/swallow-engine" kernels build --arch sm_90 --out "$pack" ||
        { fail "see $built"; return; }
    local with_pack=("${carried[@]}" "SWALLOW_KERNELS=$pack")
    logged "$checked" 120 "${with_pack[@]}" "$gpu/swallow-engine" kernels check || { fail "see $checked"; return; }
    grep -q ': sm_90, the pack' "$checked" ||
        { fail "the device does not run the pack: $(tail -n 1 "$checked")"; return; }
    one_by_one sm80 "$gpu/kernel-tests" "${with_pack[@]}" KERNELS_ON=device < <(modules | grep -Ev '^probes|sm90::$') ||
        return
    local kernels=$why
    one_by_one sm80 "$gpu/whole" "${with_pack[@]}" "${on_device[@]}" < <(golden) || return
    why="kernels: $kernels; training: $why"
}

# -- compute-sanitizer --

part_memcheck() { sanitize memcheck; }
part_racecheck() { sanitize racecheck; }

sanitize() {
    need_device || return
    local program
    program=$(sanitizer) || { skip "there is no compute-sanitizer here"; return; }
    refused "$program" "$1" && return 2
    local under=("${carried[@]}" KERNELS_ON=device RUST_TEST_THREADS=4 "$program" --tool "$1" --error-exitcode 9)
    one_by_one "$1" "$gpu/kernel-tests" "${under[@]}" < <(modules)
}

# Whether compute-sanitizer does not work here, by the shortest of the tests.
refused() {
    local log=$results/$2-first.log said
    local shortest=("$gpu/kernel-tests" every_thread_knows)
    logged "$log" 120 "${carried[@]}" KERNELS_ON=device "$1" --tool "$2" "${shortest[@]}" >/dev/null || true
    said=$(grep -m1 -E 'Device not supported|not supported on this|Unable to find|Failed to initialize' "$log") ||
        return
    why="compute-sanitizer says: $said"
}

sanitizer() {
    local found
    for found in "$(command -v compute-sanitizer)" /usr/local/cuda*/bin/compute-sanitizer \
        /opt/nvidia/*/*/target/linux*x64/compute-sanitizer; do
        [ -x "$found" ] && echo "$found" && return
    done
    return 1
}

# -- times --

part_bench() {
    need_device || return
    local measured=(CRITERION_HOME="$work/criterion" "$gpu/bench" --json "$results/bench.jsonl")
    logged "$results/bench.log" "$(left)" "${carried[@]}" "${measured[@]}" || { fail "see $results/bench.log"; return; }
    printf 'clocks after the benchmarks\tSM and memory at %s\n' "$(ask clocks.sm,clocks.mem)" >>"$results/about"
    grep ' us, ' "$results/bench.log"
    why="$(grep -c '"seconds"' "$results/bench.jsonl") times"
}

part_peers() {
    need_device || return
    has_torch || { skip "the python3 in PATH has no PyTorch"; return; }
    local seconds log=$results/peers.log lines=$results/peers.jsonl
    seconds=$(left)
    logged "$log" "$seconds" python3 cuda/peers.py --seconds $((seconds - 60)) --json "$lines" ||
        { fail "see $log"; return; }
    cat "$log"
    grep -qs '"seconds"' "$lines" || { fail "nothing was measured: see $log"; return; }
    why="$(grep -c '"seconds"' "$lines") times, $(grep -c '"error"' "$lines" || true) errors"
}

has_torch() { python3 -c 'import torch' 2>/dev/null; }
