# shellcheck shell=bash disable=SC2154,SC2034
# Part of tests/gpu.sh: the whole program on the device, as one rank and as several ranks that share it.

# Makes the tests of the whole program use the real device. Ranks that share a device communicate by sockets.
on_device=(
    CUDA_TESTS_ON=device RUST_TEST_THREADS=1
    NCCL_NET=Socket NCCL_SOCKET_IFNAME=lo NCCL_IB_DISABLE=1 NCCL_DEBUG=WARN
)

# The whole-program tests of a module that can run on a device.
training() {
    "${carried[@]}" "${on_device[@]}" "$gpu/whole" --list | sed -n "s/^\(cuda::\($1\)::.*\): test\$/\1/p" | sort
}
# The device decides which kernels run, so the variants for sm_90a of the fake device would repeat the others.
golden() { training golden | grep -v 'sm_90a$'; }
layouts() { training layouts; }

part_train() { train train golden; }
part_layouts() { train layouts layouts; }
part_resume() { train resume training resume; }

# Runs the tests that a command lists.
train() {
    need_device && ready || return
    local part=$1
    shift
    one_by_one "$part" "$gpu/whole" "${carried[@]}" "${on_device[@]}" < <("$@")
}

# Compiles the kernels into the cache that all parts share, so that an error is reported once, by the program itself.
ready() {
    local log=$results/ready.log
    logged "$log" "$(left)" "${carried[@]}" "$gpu/swallow-engine" kernels check ||
        { fail "swallow-engine kernels check: see $log"; return; }
    [ "$(grep -c '^device ' "$log")" -gt 0 ] || fail "swallow-engine sees no device: see $log"
}

# -- a full step, alternating with PyTorch's --

CASES=(wide-8b-2 llama-1b-4 wide-8b-1)
[ ${#smoke[@]} = 0 ] || CASES=(llama-1b-4)

part_step() {
    need_device && ready || return
    local case late='' measured=0
    for case in "${CASES[@]}"; do
        if ! done_before "step-$case"; then
            if [ "$(left)" -lt "$least" ]; then late+=" $case" && continue; fi
            drop "$case" "$results/step.jsonl"
            step "$case" && mark "step-$case"
        fi
        measured=$((measured + $(of_case "$case" | grep -c '"tokens_per_s"' || true)))
    done
    local failed who='"who"'
    # Without PyTorch only the engine's turns count.
    has_torch || who='"who": "engine"'
    failed=$(grep -s '"error"' "$results/step.jsonl" | grep -c "$who" || true)
    why="$measured turns measured"
    has_torch || why+=", nothing to compare with: the python3 in PATH has no PyTorch"
    [ -z "$late" ] || { fail "$why; no time was left for$late: call it again"; return; }
    [ "$measured" -gt 0 ] && [ "$failed" = 0 ] || fail "$why, $failed failed: see $results/step.jsonl"
}

# A script that starts the engine with its environment: PyTorch, which runs beside it, must not use the copied
# libraries.
engine() {
    { printf '#!/bin/sh\nexec' && printf ' %q' "${carried[@]}" "$at/swallow-engine" && echo ' "$@"'; } >"$work/engine"
    chmod +x "$work/engine" && echo "$work/engine"
}

# Runs both sides of a case. Errors of the engine fail the part; those of PyTorch are recorded.
step() {
    local seconds
    seconds=$(left)
    logged "$results/step-$1.log" "$seconds" python3 benches/step.py "${smoke[@]}" --json "$results/step.jsonl" \
        --engine "$(engine)" --runs "$work/step" --seconds $((seconds - 10)) "$1" || return
    cat "$results/step-$1.log"
    mkdir -p "$results/step" && cp "$work/step/$1"-*.log* "$results/step/" 2>/dev/null || true
    [ "$(of_case "$1" | grep -c '"tokens_per_s"')" -ge 2 ]
}

of_case() { grep -s "\"case\": \"$1\"" "$results/step.jsonl"; }

# Deletes a case's lines before it is measured again.
drop() {
    [ -f "$2" ] || return 0
    grep -v "\"case\": \"$1\"" "$2" >"$2.new" || true
    mv "$2.new" "$2"
}

# -- where a step's time goes --

part_trace() {
    need_device && ready || return
    logged "$results/trace.log" "$(left)" python3 benches/step.py "${smoke[@]}" --trace "$results/trace.json" \
        --engine "$(engine)" --runs "$work/trace" --seconds "$(left)" "${CASES[0]}" ||
        { fail "see $results/trace.log"; return; }
    grep 'nothing computed' "$results/trace.log" >"$results/idle" ||
        { fail "the trace does not report gaps: see $results/trace.log"; return; }
    cat "$results/idle"
    why=$(sed 's/^.*nothing computed/nothing computed/' "$results/idle")
}
