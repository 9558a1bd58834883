# For the job scripts of this folder, which source it: runs a command for a batch system that signals the job before its
# time is over, and starts the job again if the run then stopped.
#
#   run_and_requeue CONFIG 'COMMAND THAT STARTS THE JOB AGAIN' COMMAND...
#
# SIGUSR1, SIGUSR2 and SIGTERM are passed on to COMMAND as SIGUSR1, whose run finishes its step, saves and leaves
# `stopped` in the status.json of its directory. A run that failed, is finished or saved nothing is not started again.
run_and_requeue() {
    local config=$1 again=$2 run code=0 dir signal began
    shift 2
    began=$(mktemp)
    "$@" &
    run=$!
    for signal in USR1 USR2 TERM; do
        # mpirun passes SIGUSR1 on at once, and SIGTERM only after the time that it grants its ranks.
        # shellcheck disable=SC2064 # the process is the one of now
        trap "kill -USR1 $run 2>/dev/null || true" "$signal"
    done
    wait "$run" || code=$?
    # A signal ends `wait`, while the run goes on saving.
    while kill -0 "$run" 2>/dev/null; do
        code=0
        wait "$run" || code=$?
    done
    # Not by the exit code: mpirun has one of its own for some signals.
    dir=$(sed -n '/^ *\[checkpoint\]/,/^ *\[/p' "$config" | sed -nE "s/^ *dir *= *[\"']([^\"']*)[\"'].*/\1/p")
    if [[ -z "$dir" ]]; then
        echo "the job is not started again: $config has no line dir = \"...\" of the run under [checkpoint]" >&2
    fi
    if [[ "$dir/status.json" -nt "$began" ]] && grep -q '"state": "stopped"' "$dir/status.json" &&
        grep -q '"checkpoint": [0-9]' "$dir/status.json"; then
        echo "the run in $dir stopped before its last step; the job is started again"
        eval "$again"
    fi
    rm -f "$began"
    return "$code"
}
