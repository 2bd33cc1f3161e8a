"""`mgit commit`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from modelgit.cli._commits import refusal_lines, verdict_lines
from modelgit.cli._density import parse_share, reduced_data, say_reduced
from modelgit.cli._format import plural, size
from modelgit.cli._options import SEED, command, json_option, pass_session
from modelgit.cli._output import Output, blue, plain_data, yellow
from modelgit.cli._session import Session
from modelgit.errors import GateRefused, UsageError
from modelgit.reporting.wording import share

if TYPE_CHECKING:
    from modelgit.repo.patches.density import Reduced
    from modelgit.repo.tracking.commit_records import CommitResult

__all__ = ["commit", "say_commit"]

_TEMPLATE = "\n# What changed, and why?  Lines that start with # are left out; an empty message gives the commit up.\n"


@command("commit", example="mgit commit -m 'refunds: tune tone of denials'")
@click.option("-m", "--message", "messages", multiple=True, metavar="TEXT", help="What and why; again for a paragraph.")
@click.option("--only", multiple=True, metavar="PATTERN", help="Record matching paths only; may be repeated.")
@click.option(
    "--gate",
    type=click.Choice(["block", "warn"]),
    default="block",
    show_default=True,
    help="When a limit is broken: refuse, or record and mark the commit.",
)
@click.option("--allow-empty", is_flag=True, help="Commit even if nothing changed.")
@click.option("--mask", "masks", multiple=True, metavar="ID", help="The FISH mask that this was trained under.")
@click.option("--base", metavar="hf:org/name@COMMIT", help="A published model: what it holds is not stored again.")
@click.option("--adapter", "adapters", multiple=True, metavar="DIR", help="A PEFT adapter that was merged; repeatable.")
@click.option("--from", "source", metavar="DIR", help="Record the checkpoint in DIR (or a file), read where it lies.")
@click.option("--as", "as_path", metavar="PATH", help="With --from: the tracked path that it is (the only one).")
@click.option("--no-worktree", is_flag=True, help="With --from: leave the files in the work tree as they are.")
@click.option("--branch", metavar="NAME", help="With --no-worktree: commit on this branch, without switching.")
@click.option("--author", metavar="'NAME <MAIL>'", help="Who made the change, if it was not you.")
@click.option("--density", metavar="SHARE", help="Keep this share of the model's values, 0.5% or 0.005: a lossy patch.")
@click.option("--max-kl", type=float, metavar="NATS", help="Keep the smallest share whose measured KL is below this.")
@click.option(
    "--importance",
    type=click.Choice(["fisher", "magnitude", "uniform", "top-k", "top-k-fisher"]),
    help="Of a lossy patch: how values are chosen (fisher).",
)
@click.option("--seed", type=SEED, metavar="N", help="Of a lossy patch: the seed of its draws (0).")
@click.option(
    "--draws",
    type=click.IntRange(1, 64),
    metavar="N",
    help="Of a lossy patch: draw N, take the one of least KL (1).",
)
@click.option("--task", metavar="NAME", help="Of a lossy patch: the task of mgit.toml that it is judged by.")
@click.option(
    "--examples", type=click.IntRange(min=1), metavar="N", help="Of a lossy patch: inputs of the Fisher pass (512)."
)
@json_option
@pass_session
def commit(
    session: Session,
    messages: tuple[str, ...],
    only: tuple[str, ...],
    gate: str,
    allow_empty: bool,
    masks: tuple[str, ...],
    base: str | None,
    adapters: tuple[str, ...],
    source: str | None,
    as_path: str | None,
    no_worktree: bool,
    branch: str | None,
    author: str | None,
    density: str | None,
    max_kl: float | None,
    importance: str | None,
    seed: int | None,
    draws: int | None,
    task: str | None,
    examples: int | None,
    as_json: bool,
) -> None:
    """Record everything tracked that changed, bit for bit, once the gate has passed it.

    The gate runs the suites that mgit.toml names, or else a built-in one, on the model as it will be read back.  If a
    limit is broken, nothing is recorded and the exit code is 1.

    With --from, a checkpoint that lies elsewhere is recorded as the new state of the tracked model, and everything else
    stays as it is in the last commit.  Nothing is copied but into the store, and into the work tree unless
    --no-worktree is given.

    With --density or --max-kl, a dense change is recorded as a sparse patch without training, which loses something:
    what it costs is measured on the task's data, the gate looks at the patched model, and the work tree holds that
    afterwards.  The dense weights stay in .mgit/rescue for 7 days.  Values are drawn with a probability and what is
    kept is divided by it, so that the patch is right on average: by Fisher information and size of the change (fisher:
    the least KL for its size, needs a task with inputs, labels or not), by size alone (magnitude), or all alike
    (uniform, known as DARE).  Below some 0.2 % one draw may cost twice what another does: --draws takes the best of N.
    top-k and top-k-fisher keep the largest values as they are; what they drop adds up in one direction, and at a
    density of some per cent the model falls apart.
    """
    message = "\n\n".join(messages) or _ask_for_message()
    common: dict[str, Any] = {
        "only": [session.tree_path(pattern) for pattern in only],
        "gate": gate,
        "source": source,
        "as_path": None if as_path is None else session.tree_path(as_path),
        "worktree": not no_worktree,
        "branch": branch,
        "author": author,
        "progress": session.progress,
    }
    exact = {"--mask": masks, "--base": base, "--adapter": adapters, "--allow-empty": allow_empty}
    lossy = {"importance": importance, "seed": seed, "draws": draws, "task": task, "examples": examples}
    reduced: Reduced | None = None
    try:
        if density is not None or max_kl is not None:
            reduced = _commit_patch(session, message, density, max_kl, common, exact, lossy)
            result = reduced.commit
        elif given := [name for name, value in lossy.items() if value is not None]:
            raise UsageError(
                f"`--{given[0]}` goes with `--density` or `--max-kl`",
                hint="`mgit commit --density 0.5% -m …` records a lossy patch",
            )
        else:
            result = session.repository.commit(
                message,
                allow_empty=allow_empty,
                masks=masks,
                base=base,
                adapters=[session.path(adapter) for adapter in adapters],
                **common,
            )
    except GateRefused as refusal:
        from modelgit.repo.gates.gate import RefusedWithRecords

        if isinstance(refusal, RefusedWithRecords):
            session.output.say_lines(refusal_lines(refusal))
        raise
    if as_json:
        details = {} if reduced is None else {"reduced": reduced_data(reduced)}
        session.output.json("mgit.commit/1", {**_plain(result), **details})
        return
    say_commit(session.output, result)
    if reduced is not None:
        say_reduced(session.output, reduced)
    if no_worktree and result.branch == session.repository.view().branch:
        session.output.say("The work tree is as it was before.")
        session.output.say("hint: `mgit restore .` brings it up to date")
    if adapters and result.encodings and "lowrank" not in result.encodings:
        session.output.say("No tensor is stored by the adapter's factors: it is not what changed, or others took less.")
    if result.unmatched:
        names = ", ".join(result.unmatched[:3]) + (", …" if len(result.unmatched) > 3 else "")
        count = plural(len(result.unmatched), "adapted module")
        session.output.say(f"{count} without a tensor of that name in the model: {names}")
    user = session.repository.settings.user
    if result.is_first and author is None and session.environment.author is None and not (user.name and user.email):
        session.output.say(f"You are recorded as {result.commit.author}.")
        keys = "user.email MAIL` says" if user.name else "user.name NAME`, and user.email, say"
        session.output.say(f"hint: `mgit config set --user {keys} who you are")


def _plain(result: CommitResult) -> dict[str, object]:
    data = plain_data(result)
    return data if isinstance(data, dict) else {}


def _commit_patch(
    session: Session,
    message: str,
    density: str | None,
    max_kl: float | None,
    common: dict[str, Any],
    exact: Mapping[str, object],
    lossy: Mapping[str, object],
) -> Reduced:
    for option, value in exact.items():
        if value:
            raise UsageError(f"`{option}` is about an exact commit", hint="leave it out, or `--density` and `--max-kl`")
    from modelgit.repo.patches.density import commit_patch

    given: dict[str, Any] = {name: value for name, value in lossy.items() if value is not None}
    share_kept = None if density is None else parse_share(density, hint="`mgit commit --density 0.5% -m …`")
    return commit_patch(session.repository, message, density=share_kept, max_kl=max_kl, **common, **given)


def say_commit(output: Output, result: CommitResult, *, note: str = "", place: str | None = None) -> None:
    """What was committed: a heading, what it takes, and the verdicts.  `place` is said in place of the branch."""
    output.say(
        "[",
        blue(place or result.branch or "detached"),
        " ",
        yellow(result.id.short),
        f"] {result.commit.subject}{note}",
    )
    patch = result.patch
    words = []
    if patch.tensors:
        codecs = ", ".join(f"{number} {codec}" for codec, number in result.encodings.items())
        brought = sum(change.kind != "removed" for change in patch.tensors)
        if (here := brought - sum(result.encodings.values())) > 0:
            codecs += f"{', ' if codecs else ''}{here} stored already"
        words.append(plural(len(patch.tensors), "tensor") + (f": {codecs}" if codecs and not result.is_first else ""))
    if patch.files:
        words.append(plural(len(patch.files), "file"))
    added = result.bytes_added - result.training_bytes
    exact = "exact" if patch.exact else "lossy"
    if result.is_first:
        taken = f": {size(result.raw_bytes)} stored as {size(added)}, {exact}"
    else:
        part = share(added, result.raw_bytes)
        taken = f" → {size(added)} ({part} of the tree), {exact}"
    output.say("  ", (", ".join(words) or "no changes") + taken)
    if result.training.files:
        files = result.training.files
        taken = f" → {size(result.training_bytes)}" if result.training_bytes else ", unchanged"
        raw = size(sum(entry.size for entry in files))
        output.say(f"  training state: {plural(len(files), 'file')}, {raw}{taken}")
    output.say_lines(verdict_lines(result.evaluations, baseline=next(iter(result.commit.parents), None), indent=2))


def _ask_for_message() -> str:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("the commit has no message", hint="`mgit commit -m 'what and why'`")
    written = click.edit(_TEMPLATE) or ""
    return "\n".join(line for line in written.splitlines() if not line.startswith("#")).strip()
