# What bin/demo and bin/demo-prompt share; they source it.

# Reads the one argument and builds. Leaves the folder to write to in `out`, that of the tools in `tools`.
begin() {
    local caller=$PWD name=$1 target
    case "${2-}" in
    -*)
        sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[1]}" >&2
        exit 2
        ;;
    '') out=$name ;;
    /*) out=$2 ;;
    *) out=$caller/$2 ;;
    esac
    cd "$(dirname "${BASH_SOURCE[0]}")/../.."
    run bin/setup
    run cargo build --release --locked
    target=$(cargo metadata --no-deps --locked --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
    tools=${target#"$PWD/"}/release
    mkdir -p "$out"
}

# Prints a command, quoted where a shell needs it, and runs it.
run() {
    local word
    printf '\n$'
    for word in "$@"; do
        case "$word" in
        *[!A-Za-z0-9_./=:,+-]*) printf ' %s' "${word@Q}" ;;
        *) printf ' %s' "$word" ;;
        esac
    done
    printf '\n'
    "$@"
}

# The caption of an image of $model.
caption() {
    sed -n "s/.*\"$1.png\": \"\(.*\)\".*/\1/p" "$model/images/captions.json"
}

# Fails if one of these files of $out is not there.
written() {
    local file
    for file in "$@"; do
        [ -s "$out/$file" ] || {
            printf '%s: %s was not written\n' "$0" "$out/$file" >&2
            exit 1
        }
    done
}
