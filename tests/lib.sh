# lib.sh - what test scripts share. Source it first, end with `summary`:
#     . "$(dirname "$0")/../lib.sh"
# Two folders stand side by side, theirs/ (the oracle, Debian's qemu tools) and ours/ (the programs
# of the build). The same command runs in both with the same relative names, so output and images
# can be compared. Counting functions print nothing when all is well. See tests/README.md.

set -u
tests_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
: "${QCOWKIT_BIN:=$tests_dir/../build/bin}"
QCOWKIT_BIN=$(cd "$QCOWKIT_BIN" && pwd) || exit 1
: "${QCOWKIT_ORACLE:=/usr/bin}"
: "${QCOWKIT_MATRIX:=quick}"
: "${QCOWKIT_SHARD:=0}"
: "${QCOWKIT_SHARDS:=1}"
PATH=$PATH:/usr/sbin:/sbin # mkfs and fsck live there

work=$(mktemp -d "${TMPDIR:-/tmp}/qcowkit-test.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
mkdir "$work/theirs" "$work/ours"
cd "$work" || exit 1
passed=0 failed=0 skipped=0

# ---- counting ----

pass() { passed=$((passed + 1)); }

# fail TEXT [LINE...]: counts a failure and shows the lines below it
fail() {
    failed=$((failed + 1))
    printf 'failed: %s\n' "$1"
    shift
    [ $# -eq 0 ] || printf '    %s\n' "$@"
}

skip() {
    skipped=$((skipped + 1))
    printf 'skipped: %s\n' "$1"
}

# check TEXT COMMAND...: counts whether the command succeeds
check() {
    local text=$1
    shift
    if "$@" >"$work/.check" 2>&1; then pass; else fail "$text" "$(head -c 2000 "$work/.check")"; fi
}

# equal TEXT ACTUAL EXPECTED: counts whether the two strings are the same
equal() {
    if [ "$2" = "$3" ]; then pass; else fail "$1" "actual:   $2" "expected: $3"; fi
}

# matches TEXT STRING REGEX (extended)
matches() {
    if printf '%s\n' "$2" | grep -Eq -- "$3"; then pass; else fail "$1" "no match for: $3" "in: $2"; fi
}

# summary: the closing line and the exit status; the last command of a script
summary() {
    [ $((passed + failed + skipped)) -gt 0 ] || fail "no check ran"
    if [ "$skipped" -gt 0 ]; then
        echo "$passed passed, $failed failed, $skipped skipped"
    else
        echo "$passed passed, $failed failed"
    fi
    [ "$failed" -eq 0 ]
    exit
}

# on_terminal TEXT COMMAND...: as check, for a command that imports terminal.py; skipped where there
# can be no terminal, and $no_terminal says why
on_terminal() {
    no_terminal=$(python3 "$tests_dir/terminal.py")
    if [ -n "$no_terminal" ]; then skip "$1: $no_terminal"; else PYTHONPATH=$tests_dir check "$@"; fi
}

need() { # need TOOL...: the script is skipped as a whole when one is missing
    local tool
    for tool; do
        command -v "$tool" >/dev/null && continue
        skip "$tool is not installed"
        summary
    done
}

# ---- running ----

# ours TOOL ARGS... / theirs TOOL ARGS...: runs there; TOOL is qemu-img, qemu-io (or qcowkit).
# Output goes to .out.SIDE and .err.SIDE in $work, the exit status is returned.
side() {
    local name=$1 dir=$2 tool=$3
    shift 3
    (cd "$work/$name" && exec "$dir/$tool" "$@") \
        >"$work/.out.$name" 2>"$work/.err.$name" </dev/null
}
ours() { side ours "$QCOWKIT_BIN" "$@"; }
theirs() { side theirs "$QCOWKIT_ORACLE" "$@"; }

# Takes timings, figures that the file system decides and options that newer versions of qemu have
# out of the output; a death by signal and a
# sanitizer's report are never normal.
normalise() {
    sed -E -e 's/[0-9:.]+( sec)? \([^)]*\/sec[^)]*\)/T sec (R)/' -e 's/^disk size: .*/disk size: D/' \
        -e '/^  (keep_data_file|data_file_keep)=/d' -e 's/("actual-size": )[0-9]+/\1D/' -e 's/^Run completed in .* seconds\./Run completed in T seconds./' "$@"
}

# Runs on both sides; sets status_ours, status_theirs, and fills .norm.* files.
run_both() {
    local s stream
    theirs "$@"
    status_theirs=$?
    ours "$@"
    status_ours=$?
    for s in ours theirs; do
        for stream in out err; do
            normalise "$work/.$stream.$s" >"$work/.norm.$stream.$s"
        done
    done
    [ $status_ours -lt 99 ] || {
        fail "died with status $status_ours: $*" "$(tail -n 25 "$work/.err.ours")"
        return 1
    }
}

differ() { # differ out|err: unified diff of the two sides, empty when equal
    diff -u --label theirs --label ours "$work/.norm.$1.theirs" "$work/.norm.$1.ours"
}

# both TOOL ARGS...: same stdout, same exit status, and stderr empty on both sides or on none
both() {
    run_both "$@" || return
    if [ $status_ours -ne $status_theirs ]; then
        fail "exit status $status_ours, theirs $status_theirs: $*" "$(head -n 5 "$work/.err.ours")"
    elif ! differ out >"$work/.diff"; then
        fail "stdout of: $*" "$(head -n 40 "$work/.diff")"
    elif [ -s "$work/.err.ours" ] && [ ! -s "$work/.err.theirs" ] ||
        [ ! -s "$work/.err.ours" ] && [ -s "$work/.err.theirs" ]; then
        differ err >"$work/.diff"
        fail "stderr of: $*" "$(head -n 20 "$work/.diff")"
    else
        pass
    fi
}

# both_exact: as both, and the text on stderr is the same
both_exact() {
    both "$@"
    if differ err >"$work/.diff"; then
        pass
    else
        fail "stderr of: $*" "$(head -n 20 "$work/.diff")"
    fi
}

# both_status: only the exit status agrees
both_status() {
    run_both "$@" || return
    if [ $status_ours -eq $status_theirs ]; then
        pass
    else
        fail "exit status $status_ours, theirs $status_theirs: $*" "$(head -n 5 "$work/.err.ours")"
    fi
}

# both_json: stdout is the same JSON value whatever the layout, but for "actual-size";
# both_map: so for `qemu-img map --output=json`, but for the host offsets
both_json() { json_of "" "$@"; }
both_map() { json_of --map qemu-img map --output=json "$@"; }
json_of() {
    local how=$1
    shift
    run_both "$@" || return
    if [ $status_ours -ne $status_theirs ]; then
        fail "exit status $status_ours, theirs $status_theirs: $*" "$(head -n 5 "$work/.err.ours")"
    elif python3 "$tests_dir/conformance/json-equal" $how "$work/.out.theirs" \
        "$work/.out.ours" >"$work/.diff" 2>&1; then
        pass
    else
        fail "JSON of: $*" "$(head -n 40 "$work/.diff")"
    fi
}

# must SIDE TOOL ARGS...: must succeed on that side (preparation, counted like a check)
must() {
    local name=$1
    shift
    if "$name" "$@"; then
        pass
    else
        fail "$name: $*" "$(head -n 5 "$work/.err.$name")"
    fi
}

# ---- comparing images ----

# clean IMAGE: on both sides, both checkers find nothing in IMAGE
clean() {
    local s tool
    for s in ours theirs; do
        for tool in "$QCOWKIT_BIN" "$QCOWKIT_ORACLE"; do
            check "$s/$1 is clean for $tool" "$tool/qemu-img" check -f qcow2 "$s/$1"
        done
    done
}

# same IMAGE [FORMAT]: the two sides' images read the same, for both programs
same() {
    local tool f=${2:-qcow2}
    for tool in "$QCOWKIT_BIN" "$QCOWKIT_ORACLE"; do
        check "theirs/$1 and ours/$1 are equal for $tool" \
            "$tool/qemu-img" compare -f "$f" -F "$f" "theirs/$1" "ours/$1"
    done
}

# ---- the matrix ----

# my_share INDEX: whether this shard runs case number INDEX
my_share() { [ $(($1 % QCOWKIT_SHARDS)) -eq "$QCOWKIT_SHARD" ]; }

# fresh: both folders empty again, between cases
fresh() {
    rm -rf "$work/theirs" "$work/ours"
    mkdir "$work/theirs" "$work/ours"
}
