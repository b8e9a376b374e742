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
    local passed failed ignored skipped
    sum() { sed -n "s/^test result: .* \([0-9]*\) $1;.*/\1/p" "$parts_log" | awk '{ n += $1 } END { print n + 0 }'; }
    passed=$(sum passed) failed=$(sum failed) ignored=$(sum ignored)
    skipped=$(grep -ac '^SKIPPED ' "$parts_log" || true)
    if [ "$skipped" != 0 ] || [ "$ignored" != 0 ]; then
        printf '\n== skipped\n'
        grep -a '^SKIPPED ' "$parts_log" | sort | uniq || true
        sed -n 's/^test \(.*\) \.\.\. ignored, \(.*\)/SKIPPED \1: \2/p; s/^test \(.*\) \.\.\. ignored$/SKIPPED \1/p' "$parts_log" | sort | uniq
    fi
    printf '\n== time of each part\n'
    printf '%s\n' "${parts[@]}"
    printf '%-28s %5d s\n' all "$SECONDS"
    printf '\n%d passed, %d failed, %d skipped\n' $((passed - skipped)) "$failed" $((skipped + ignored))
    if [ ${#failed_parts[@]} != 0 ]; then
        printf 'FAILED: %s\n' "${failed_parts[*]}"
        exit 1
    fi
}
