"""The table of commands: name, where it is, one line of help, heading.  Nothing is imported from here."""

from __future__ import annotations

from modelgit.cli._lazy import Entry

__all__ = ["COMMANDS"]

_SECTIONS: dict[str, dict[str, str]] = {
    "Start": {
        "init": "Make an empty repository.",
        "clone": "Copy a repository.",
        "demo": "Play a day with mgit on a real model: train, gate, merge, push, clone.",
        "track": "Say which models and files are recorded.",
        "untrack": "Stop recording a path.",
    },
    "Record": {
        "status": "Show what changed since the last commit.",
        "commit": "Record everything tracked that changed.",
        "restore": "Bring files back as they were.",
        "undo": "Take back the last operation.",
        "redo": "Do again what was undone.",
    },
    "Look": {
        "log": "Show the history.",
        "show": "Show one commit and what it changed.",
        "diff": "Compare two states of a model, tensor by tensor.",
        "blame": "Say which commit last changed each tensor, or each row of one.",
        "bisect": "Find the commit that broke something, by asking about few.",
        "cat-tensor": "Look at one tensor, or write it to a file.",
        "snapshot": "Make a read-only directory of a model as it was, for programs that load one.",
        "op": "Show what was done in this repository.",
    },
    "Convert": {
        "import": "Convert a checkpoint to safetensors or PyTorch, without running its pickle.",
        "export": "Write a commit's model to one file.",
    },
    "Branch and merge": {
        "branch": "List, make or delete branches.",
        "switch": "Change to another branch.",
        "tag": "List, make or delete tags.",
        "merge": "Combine another branch with this one.",
        "cherry-pick": "Apply the change of a commit to this branch.",
        "revert": "Take the change of a commit back.",
        "rebase": "Put the commits of this branch on top of another.",
        "soften": "Blend a commit with its parent until the gate lets it pass.",
        "resolve": "Say how a conflict is decided.",
        "merge-file": "Merge models that are in no repository.",
    },
    "Measure": {
        "eval": "Run evaluation suites.",
        "flips": "List the examples that one commit had right and another has wrong.",
        "check": "Check whether commits may land on a branch.",
        "approve": "Sign leave for a commit to land on a protected branch.",
        "fisher": "Estimate the Fisher information of the weights.",
        "mask": "Choose which weights a training run may change.",
    },
    "Share": {
        "remote": "List, add or remove remote repositories.",
        "push": "Send commits to a remote.",
        "fetch": "Get commits from a remote without touching your files.",
        "pull": "Get commits from a remote and bring the current branch forward.",
    },
    "Keep house": {
        "config": "Read and change settings.",
        "trust": "Allow the code that mgit.toml names to run.",
        "borrow": "Use weights that lie elsewhere without storing them again.",
        "du": "Show what the stored bytes are for.",
        "gc": "Free space: drop what nothing refers to.",
        "prune": "Take the weights of commits that retention does not keep.",
        "repack": "Store everything smaller, without changing any of it.",
        "fsck": "Check every stored byte.",
        "hooks": "Run checks from the hooks of git.",
        "completion": "Print the completion script of a shell.",
    },
}

_ATTRIBUTES = {"eval": "evaluate", "import": "import_"}  # words of Python's own


def _module(name: str) -> str:
    return name.replace("-", "_")


COMMANDS: dict[str, Entry] = {
    name: Entry(f"modelgit.cli.cmd_{_module(name)}:{_ATTRIBUTES.get(name, _module(name))}", text, section)
    for section, commands in _SECTIONS.items()
    for name, text in commands.items()
}
