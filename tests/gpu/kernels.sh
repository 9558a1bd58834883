# shellcheck shell=bash disable=SC2154,SC2034
# Part of tests/gpu.sh: tests and times of the kernels on the device.

# The modules of the kernels' tests that run on a device.
modules() {
    "${carried[@]}" "$gpu/kernel-tests" --list | sed -n 's/^\([a-z0-9_]*::\).*: test$/\1/p' | sort -u |
        grep -Evx '(alike|mutants|reports|hopper|windows)::'
}

part_probes() {
    need_device || return
    one_by_one probes "$gpu/kernel-tests" "${carried[@]}" KERNELS_ON=both < <(modules | grep '^probes')
}

part_kernels() {
    need_device || return
    one_by_one kernels "$gpu/kernel-tests" "${carried[@]}" KERNELS_ON=both < <(modules | grep -v '^probes')
}

# An A100's kernels, compiled for this device, since a cubin for sm_80 does not load on it.
part_sm80() {
    need_device || return
    [ "$(ask compute_cap)" = 9.0 ] || { skip "the device runs the kernels of sm_80 anyway"; return; }
    local pack=$work/sm_90
    logged "$results/sm80-pack.log" "$(left)" "${carried[@]}" "$gpu/swallow-engine" \
        kernels build --arch sm_90 --out "$pack" || { fail "see $results/sm80-pack.log"; return; }
    logged "$results/sm80-check.log" 120 "${carried[@]}" "SWALLOW_KERNELS=$pack" "$gpu/swallow-engine" kernels check ||
        { fail "see $results/sm80-check.log"; return; }
    grep -q ': sm_90, the pack' "$results/sm80-check.log" ||
        { fail "the device does not run the pack: $(tail -n 1 "$results/sm80-check.log")"; return; }
    one_by_one sm80 "$gpu/kernel-tests" "${carried[@]}" KERNELS_ON=device "SWALLOW_KERNELS=$pack" \
        < <(modules | grep -Ev '^probes|sm90::$') || return
    local kernels=$why
    one_by_one sm80 "$gpu/whole" "${carried[@]}" "${on_device[@]}" "SWALLOW_KERNELS=$pack" < <(golden) || return
    why="kernels: $kernels; training: $why"
}

# -- compute-sanitizer --

part_memcheck() { sanitize memcheck; }
part_racecheck() { sanitize racecheck; }

sanitize() {
    need_device || return
    local program
    program=$(sanitizer) || { skip "this machine has no compute-sanitizer"; return; }
    refused "$program" "$1" && return 2
    one_by_one "$1" "$gpu/kernel-tests" "${carried[@]}" KERNELS_ON=device RUST_TEST_THREADS=4 \
        "$program" --tool "$1" --error-exitcode 9 < <(modules)
}

# Succeeds if compute-sanitizer does not work on this device, tried on the shortest test.
refused() {
    local log=$results/$2-first.log said
    logged "$log" 120 "${carried[@]}" KERNELS_ON=device "$1" --tool "$2" "$gpu/kernel-tests" every_thread_knows \
        >/dev/null || true
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
    local seconds
    seconds=$(left)
    logged "$results/peers.log" "$seconds" python3 cuda/peers.py --seconds $((seconds - 60)) \
        --json "$results/peers.jsonl" || { fail "see $results/peers.log"; return; }
    cat "$results/peers.log"
    grep -qs '"seconds"' "$results/peers.jsonl" || { fail "nothing was measured: see $results/peers.log"; return; }
    why="$(grep -c '"seconds"' "$results/peers.jsonl") times"
    why+=", $(grep -c '"error"' "$results/peers.jsonl" || true) errors"
}

has_torch() { python3 -c 'import torch' 2>/dev/null; }
