"""What people who know git type, and what does it here: words and options, each with its hint."""

from __future__ import annotations

__all__ = ["GIT_OPTIONS", "GIT_WORDS"]

# What people who know git type, and what does it here.
GIT_WORDS = {
    "add": "`mgit track PATH` once, then `mgit commit` takes everything tracked that changed",
    "checkout": "`mgit switch BRANCH` changes branches, `mgit restore PATH` brings files back",
    "help": "`mgit --help` lists the commands, `mgit COMMAND --help` explains one",
    "ls-files": "`mgit show` lists the files of a commit",
    "mergetool": "`mgit resolve` lists conflicts and decides them",
    "reflog": "`mgit op log` lists everything that was done",
    "reset": "`mgit undo` takes back the last operation, `mgit restore .` the changes in the work tree",
    "rm": "`mgit untrack PATH` stops recording a path",
    "stash": "`mgit switch -c NAME` takes your changes along to a new branch, where `mgit commit` keeps them",
    "version": "`mgit --version`",
}

_TAKES_ALL = "`mgit commit -m …` takes everything tracked that changed, without an option"
_NO_STAGING = "`mgit diff` compares with the last commit; there is no staging area"
_WHAT_CHANGED = "`mgit show REV` says what a commit changed, `mgit diff A B --stat` what lies between two"

# Options of git's commands, and what does it here.
GIT_OPTIONS = {
    "branch": {"-a": "`mgit branch` lists the branches here, `mgit branch -r` those of remotes"},
    "commit": {
        "-a": _TAKES_ALL,
        "--all": _TAKES_ALL,
        "--amend": "`mgit undo` takes the commit back and leaves its changes in the work tree; then commit again",
        "--no-verify": "`mgit commit --gate warn` records although a limit is broken, and marks the commit",
    },
    "config": {
        "--global": "`mgit config set --user KEY VALUE` sets it for all your repositories",
        "--list": "`mgit config list` lists every setting",
        "-l": "`mgit config list` lists every setting",
    },
    "diff": {"--cached": _NO_STAGING, "--staged": _NO_STAGING},
    "log": {
        "--all": "`mgit log BRANCH` shows the history of another branch",
        "-p": _WHAT_CHANGED,
        "--patch": _WHAT_CHANGED,
        "--stat": _WHAT_CHANGED,
    },
    "push": {
        "--all": "`mgit push REMOTE BRANCH …` sends the branches that you name",
        "--force": "`mgit push --force-with-lease` does it, unless somebody else has pushed meanwhile",
        "-f": "`mgit push --force-with-lease` does it, unless somebody else has pushed meanwhile",
        "--set-upstream": "`mgit push REMOTE BRANCH` is enough: a branch follows the one of its name",
        "-u": "`mgit push REMOTE BRANCH` is enough: a branch follows the one of its name",
    },
    "remote": {"-v": "`mgit remote` lists remotes and their URLs"},
    "resolve": {
        "--ours": "`mgit resolve NAME --take ours`",
        "--theirs": "`mgit resolve NAME --take theirs`",
    },
    "restore": {"--staged": "`mgit restore PATH` brings files back; there is no staging area"},
    "status": {"-s": "`mgit status` is short already", "--short": "`mgit status` is short already"},
    "tag": {
        "-a": "`mgit tag NAME` makes a tag; tags have no message",
        "-l": "`mgit tag` lists the tags",
        "-m": "`mgit tag NAME` makes a tag; tags have no message",
    },
}
