"""Blocks of mgit's in the hooks of a git repository: added beside what is there, taken out without a trace.

A hook that somebody else wrote is never replaced.  A shell script gets a marked block after its first line, so that an
`exit` further down does not skip it; anything else is refused with what to add by hand.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelgit.errors import RepositoryError, UsageError
from modelgit.store.durable import rename, sync_directory, temporary_name

__all__ = ["HookChange", "apply_changes", "plan_install", "plan_uninstall"]

BEGIN, END = "# >>> mgit hooks >>>", "# <<< mgit hooks <<<"
_MADE = "# This file was made by mgit and goes with the block."
_KNOWN = ("pre-commit", "pre-push")
_SHEBANG = "#!/bin/sh\n"
# `env -S sh`, `bash -e` and the like are shells, too.
_SHELL = re.compile(r"#!\s*(?:\S*/)?(?:env\s+(?:-S\s+)?)?(?:\S*/)?(?:sh|bash|dash|ksh|zsh)(?:\s|$)")
_BLOCK = re.compile(rf"^{re.escape(BEGIN)}\n.*?^{re.escape(END)}\n", re.MULTILINE | re.DOTALL)
_TIMEOUT_S = 30


@dataclass(frozen=True, kw_only=True)
class HookChange:
    """What is to happen to a hook: `before` and `after` are its texts, None where there is no file."""

    path: Path
    before: str | None
    after: str | None


def plan_install(root: Path, commands: Mapping[str, Sequence[str]], *, python: str) -> list[HookChange]:
    """The changes that make git's hooks run `mgit` in `root`; nothing is written.

    `commands` are arguments of mgit by the hook that runs them ("pre-commit", "pre-push"), `python` is the interpreter
    that has it.  Hooks that are as they should be need no change.  Raises RepositoryError when `root` lies in no git
    repository, UsageError where a hook cannot be extended: one that is no shell script, a link, or kept elsewhere.
    """
    top, hooks = _locate(root)
    inside = root.resolve().relative_to(top).as_posix()
    changes = []
    for name, arguments in commands.items():
        line = f"mgit {shlex.join(arguments)}"
        before = _read(hooks / name, line)
        # -P: files beside the hook's working directory are not looked at for modules.
        program = [python, "-P", "-m", "modelgit", "-C", f"./{inside}", *arguments]
        made = before is None or _MADE in before
        block = _block(name, program, line, made=made)
        if before is None:
            after = _SHEBANG + block
        else:
            first, _, rest = _without_block(hooks / name, before).partition("\n")
            if not _SHELL.match(first):
                raise UsageError(
                    f"{hooks / name} is no shell script, and mgit does not change it", hint=f"call `{line}` in it"
                )
            after = f"{first}\n{block}{rest}"
        if after != before:
            changes.append(HookChange(path=hooks / name, before=before, after=after))
    return changes


def plan_uninstall(root: Path) -> list[HookChange]:
    """The changes that take mgit's blocks out of all hooks; a hook that held nothing else goes.

    Raises RepositoryError when `root` lies in no git repository.
    """
    _, hooks = _locate(root)
    changes = []
    for name in _KNOWN:
        path = hooks / name
        if path.is_symlink() or not path.is_file():
            continue
        before = _text(path)
        if before is None or BEGIN not in before:
            continue
        after = _without_block(path, before)
        changes.append(
            HookChange(path=path, before=before, after=None if _MADE in before and after == _SHEBANG else after)
        )
    return changes


def apply_changes(changes: Sequence[HookChange]) -> None:
    """Write the hooks, each all or nothing, executable, with the permissions that it had.

    Raises RepositoryError when one is not what it was when the change was planned, or the disk refuses.
    """
    for change in changes:
        path = change.path
        if (_text(path) if path.is_file() else None) != change.before:
            raise RepositoryError(f"{path} changed meanwhile", hint="`mgit hooks install --dry-run` shows it again")
        try:
            if change.after is None:
                path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            mode = path.stat().st_mode & 0o777 if change.before is not None else 0o755
            temporary = path.with_name(temporary_name())
            try:
                temporary.write_bytes(change.after.encode())
                temporary.chmod(mode | 0o100)
                rename(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            sync_directory(path.parent)
        except OSError as error:
            raise RepositoryError(f"cannot write {path}: {error.strerror or error}") from error


def _locate(root: Path) -> tuple[Path, Path]:
    """The git work tree around `root`, and its directory of hooks."""
    if shutil.which("git") is None:
        raise RepositoryError("there is no git on PATH", hint="install git, or call `mgit eval lint` yourself")
    top = _git(root, "rev-parse", "--show-toplevel")
    if not top:
        raise RepositoryError(f"{root} lies in no git repository, which hooks are for", hint="`git init` makes one")
    configured = _git(root, "config", "--get", "core.hooksPath")
    if configured:
        raise UsageError(
            f"git's hooks are kept in {configured} (core.hooksPath), which mgit does not change",
            hint="call `mgit eval lint` in the hook there, or `git config --unset core.hooksPath`",
        )
    hooks = Path(_git(root, "rev-parse", "--git-path", "hooks"))
    return Path(top).resolve(), hooks if hooks.is_absolute() else root / hooks


def _git(root: Path, *arguments: str) -> str:
    """What git answers, without the line's end; "" when it says no."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RepositoryError(f"git could not be run: {error}") from error
    return done.stdout.removesuffix("\n") if done.returncode == 0 else ""


def _read(path: Path, line: str) -> str | None:
    """The text of a hook that may be extended; None when there is none."""
    if path.is_symlink():
        raise UsageError(f"{path} is a link, and mgit does not change it", hint=f"call `{line}` in what it leads to")
    if not path.exists():
        return None
    text = _text(path)
    if text is None:
        raise UsageError(f"{path} is no shell script, and mgit does not change it", hint=f"call `{line}` in it")
    return text


def _text(path: Path) -> str | None:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError:
        return None


def _without_block(path: Path, text: str) -> str:
    """`text` as it was before; raises UsageError when the marks were tampered with."""
    found = _BLOCK.sub("", text)
    if BEGIN in found or END in found:
        raise UsageError(f"the block of mgit in {path} has lost a mark", hint=f"take it out of {path} by hand")
    return found


def _block(name: str, command: Sequence[str], line: str, *, made: bool) -> str:
    """The lines of one hook.

    git runs hooks in the top directory of the work tree.  Standard input is the hook's own: a pre-push hook that
    follows reads the refs from it.
    """
    python = shlex.quote(command[0])
    return "\n".join(
        (
            BEGIN,
            f"# {line}    (made by `mgit hooks install`, taken out by `mgit hooks install --uninstall`)",
            *([_MADE] if made else []),
            f"if [ ! -x {python} ]; then",
            f"  echo {shlex.quote(f'mgit is no longer where it was; run `mgit hooks install` again ({name})')} >&2",
            "  exit 1",
            "fi",
            f"{shlex.join(command)} </dev/null || exit $?",
            END,
            "",
        )
    )
