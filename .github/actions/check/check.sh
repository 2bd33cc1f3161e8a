#!/usr/bin/env bash
# The steps of the action: `check.sh clone`, then `check.sh run`.  Everything comes in through variables, nothing is
# pasted into commands: names of branches and files are foreign.  docs/ci.md says what is trusted.
#
#   CHECK_REMOTE     the mgit repository with the protected branch: its suites, code and policies count
#   CHECK_PROPOSAL   the mgit repository with the update (the same one if empty); data, none of it is run
#   CHECK_BRANCH     the branch that the update is to land on
#   CHECK_REVISION   the branch of the proposal (the same name if empty)
#   CHECK_SUITES     "none", "all", or names of suites separated by blanks
#   CHECK_TRUST      "true": the code that the protected branch names may run
#   CHECK_MINUTES    wall time for the check; CHECK_MEMORY_GIB its address space
#   CHECK_DIRECTORY  where to work: repo/ and reports/ are made below it, cache/ is used if it is there
set -u -o pipefail

work=${CHECK_DIRECTORY:?}
repo=$work/repo
reports=$work/reports
branch=${CHECK_BRANCH:-main}
revision=${CHECK_REVISION:-$branch}
suites=${CHECK_SUITES:-none}

say() {
    # What a program printed about foreign names is no command to the runner.
    local token
    token=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    printf '::stop-commands::%s\n' "$token"
    cat -- "$@"
    printf '\n::%s::\n' "$token"
}

output() {
    [ -z "${GITHUB_OUTPUT:-}" ] || printf '%s=%s\n' "$1" "$2" >>"$GITHUB_OUTPUT"
}

# A directory is meant from here, and not from where mgit will look at it.
absolute() {
    if [ -d "$1" ]; then (cd -- "$1" && pwd); else printf '%s\n' "$1"; fi
}

clone() {
    local remote proposal
    remote=$(absolute "${CHECK_REMOTE:?}")
    proposal=$(absolute "${CHECK_PROPOSAL:-$CHECK_REMOTE}")
    mkdir -p "$work" "$reports" || return 1
    {
        mgit clone --branch "$branch" -- "$remote" "$repo" &&
            mgit -C "$repo" remote add proposal "$proposal" &&
            mgit -C "$repo" fetch proposal
    } >"$reports/clone.txt" 2>&1
    local code=$?
    say "$reports/clone.txt"
    [ "$code" = 0 ] || return "$code"
    [ "$suites" != none ] || return 0
    # Predictions are kept under names that hold the weights, so any that are found are safe; the ids of the suites
    # only decide which file of the cache is worth fetching.
    output suites "$(cd "$repo" && mgit eval lint --json 2>/dev/null | sha256sum | cut -c1-32)"
}

# Runs a command with neither network nor what the workflow knows, within limits.
confined() {
    local limits=(prlimit "--as=$((${CHECK_MEMORY_GIB:-12} << 30))" --core=0
        timeout --kill-after=30s "${CHECK_MINUTES:-20}m")
    local clean=(env -i "PATH=$PATH" "HOME=$HOME" LANG=C.UTF-8 MGIT_OFFLINE=1)
    if unshare --map-current-user --net true 2>/dev/null; then
        unshare --map-current-user --net "${clean[@]}" "${limits[@]}" "$@"
    elif sudo -n unshare --net true 2>/dev/null; then
        sudo -n unshare --net setpriv --reuid="$(id -u)" --regid="$(id -g)" --clear-groups --no-new-privs \
            "${clean[@]}" "${limits[@]}" "$@"
    else
        echo "the network cannot be taken away here: neither unshare nor sudo may do it" >&2
        return 9
    fi
}

run() {
    local arguments=(-C "$repo" --no-progress check "proposal/$revision" --base "origin/$branch" --format github
        --junit "$reports/check.xml" --markdown "$reports/check.md" --html "$reports/check.html"
        --sarif "$reports/check.sarif")
    local name code
    case $suites in
    none) arguments+=(--no-suites) ;;
    all) ;;
    *) for name in $suites; do arguments+=(--suite "$name"); done ;;
    esac
    if [ "${CHECK_TRUST:-false}" = true ]; then
        # The work tree holds the protected branch; what it names is trusted, whatever the proposal changes.  Where
        # nothing can be trusted nothing runs, and the check says so.
        mgit -C "$repo" trust >"$reports/trust.txt" 2>&1
        say "$reports/trust.txt"
    fi
    if [ -d "$work/cache" ]; then
        mkdir -p "$repo/.mgit/cache" && cp -R "$work/cache/." "$repo/.mgit/cache/predictions"
    fi
    confined "$(command -v mgit)" "${arguments[@]}" >"$reports/log.txt" 2>"$reports/words.txt"
    code=$?
    say "$reports/words.txt"
    # mgit puts its own guard around everything in here but the annotations.
    cat "$reports/log.txt"
    if [ -n "${GITHUB_STEP_SUMMARY:-}" ] && [ -f "$reports/check.md" ]; then
        cat "$reports/check.md" >>"$GITHUB_STEP_SUMMARY"
    fi
    output code "$code"
    if [ -d "$repo/.mgit/cache/predictions" ]; then
        mkdir -p "$work/cache" && cp -R "$repo/.mgit/cache/predictions/." "$work/cache/"
    fi
    return "$code"
}

case ${1:-} in
clone) clone ;;
run) run ;;
*)
    echo "usage: check.sh clone|run" >&2
    exit 2
    ;;
esac
