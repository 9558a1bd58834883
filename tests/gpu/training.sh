# shellcheck shell=bash disable=SC2154,SC2034
# Part of tests/gpu.sh: the whole program on the device, alone and as several ranks that share it.

# The variables of the whole-program tests on a real device. Ranks that share a device communicate by sockets.
on_device=(
    CUDA_TESTS_ON=device RUST_TEST_THREADS=1
    NCCL_NET=Socket NCCL_SOCKET_IFNAME=lo NCCL_IB_DISABLE=1 NCCL_DEBUG=WARN
)

# The whole-program tests on CUDA in a module.
training() {
    "${carried[@]}" "${on_device[@]}" "$gpu/whole" --list | sed -n "s/^\(cuda::\($1\)::.*\): test\$/\1/p" | sort
}
# The device decides which kernels run, so the tests that choose others on the fake device are left out.
golden() { training golden | grep -v 'sm_90a$'; }
# The layouts, compared with one rank.
layouts() { training layouts; }

part_train() { train train golden; }
part_layouts() { train layouts layouts; }
part_resume() { train resume training resume; }

# The tests that a command lists.
train() {
    need_device && ready || return
    local part=$1
    shift
    one_by_one "$part" "$gpu/whole" "${carried[@]}" "${on_device[@]}" < <("$@")
}

# Compiles the kernels into the cache that all parts share, so that a failure is reported once, by the program itself.
ready() {
    local log=$results/ready.log
    logged "$log" "$(left)" "${carried[@]}" "$gpu/swallow-engine" kernels check ||
        { fail "swallow-engine kernels check: see $log"; return; }
    [ "$(grep -c '^device ' "$log")" -gt 0 ] || fail "swallow-engine sees no device: see $log"
}

# -- a full step, ours and PyTorch's in turns --

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
    # Without PyTorch its turns fail of themselves.
    has_torch || who='"who": "engine"'
    failed=$(grep -s '"error"' "$results/step.jsonl" | grep -c "$who" || true)
    why="$measured turns measured"
    has_torch || why+=", nothing to compare with: the python3 in PATH has no PyTorch"
    [ -z "$late" ] || { fail "$why; no time was left for$late: call it again"; return; }
    [ "$measured" -gt 0 ] && [ "$failed" = 0 ] || fail "$why, $failed failed: see $results/step.jsonl"
}

# A script that starts the engine with its libraries, which PyTorch beside it must not get.
engine() {
    { printf '#!/bin/sh\nexec' && printf ' %q' "${carried[@]}" "$at/swallow-engine" && echo ' "$@"'; } >"$work/engine"
    chmod +x "$work/engine" && echo "$work/engine"
}

# Both sides of a case. A failure of the engine fails the part; one of PyTorch is written down.
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

# Deletes a case's lines, which are about to be measured again.
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
        { fail "the trace has no gaps: see $results/trace.log"; return; }
    cat "$results/idle"
    why=$(sed 's/^.*nothing computed/nothing computed/' "$results/idle")
}
