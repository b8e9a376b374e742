# Sourced by bin/test and .ci/run: work in parts, each timed; a part that fails keeps none from running.
# shellcheck shell=bash

# A line for each part that ran: name, seconds, outcome.
parts=()
failed_parts=()
parts_log=$(mktemp)
trap 'rm -f "$parts_log"' EXIT

# part NAME COMMAND...: runs a command, and remembers how long it took and how it ended.
part() {
    local name=$1 began=$SECONDS outcome=passed
    shift
    printf '\n== %s: %s\n' "$name" "$*"
    "$@" 2>&1 | tee -a "$parts_log" || outcome=FAILED
    [ "$outcome" = passed ] || failed_parts+=("$name")
    parts+=("$(printf '%-28s %5d s  %s' "$name" $((SECONDS - began)) "$outcome")")
}

# skipped_part NAME REASON: a part that cannot run here.
skipped_part() {
    printf '\n== %s: not run: %s\n' "$1" "$2"
    parts+=("$(printf '%-28s     - s  not run: %s' "$1" "$2")")
}

# close_parts: the time of each part, the tests that were skipped and why, the sum of all tests. Ends with 1 if a part failed.
# A test that finds that it cannot run here prints `SKIPPED name: reason` and returns, which libtest counts as passed: the sum does not.
close_parts() {
    local passed failed returned skipped
    # Of libtest and of pytest.
    sum() {
        sed -nE "s/^test result: .* ([0-9]+) $1;.*/\1/p; s/^([0-9]+ [a-z]+, )*([0-9]+) $1(, [0-9]+ [a-z]+)* in [0-9.]+s.*/\2/p" "$parts_log" |
            awk '{ n += $1 } END { print n + 0 }'
    }
    returned=$(grep -acE '^SKIPPED [^[]' "$parts_log" || true)
    passed=$(($(sum passed) - returned)) failed=$(sum failed)
    skipped=$((returned + $(sum ignored) + $(sum skipped)))
    if [ "$skipped" != 0 ]; then
        printf '\n== skipped\n'
        # Further in, so that who counts the lines of this output again does not count these.
        sed -nE 's/^SKIPPED (.*)/  \1/p; s/^test (.*) \.\.\. ignored, (.*)/  \1: \2/p; s/^test (.*) \.\.\. ignored$/  \1/p' "$parts_log" | sort -u
    fi
    printf '\n== time of each part\n'
    printf '%s\n' "${parts[@]}"
    printf '%-28s %5d s\n' all "$SECONDS"
    printf '\n%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
    if [ ${#failed_parts[@]} != 0 ]; then
        printf 'FAILED: %s\n' "${failed_parts[*]}"
        exit 1
    fi
}
