"""How a merge, its plan and its conflicts read in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from modelgit.cli._format import plural
from modelgit.cli._output import Part, blue, columns, dim, red, yellow
from modelgit.errors import UsageError
from modelgit.merging.options import split_rule
from modelgit.reporting.wording import amount, share

if TYPE_CHECKING:
    from modelgit.objects import CommitId
    from modelgit.objects.merges import Action, Conflict, MergePlan, Overlap
    from modelgit.repo.repository import Repository

__all__ = ["ChosenStrategy", "called", "conflict_lines", "heading", "parse_strategies", "plan_lines", "sign_lines"]


_SIGNS = 5


class ChosenStrategy(NamedTuple):
    """`--strategy` values, read: one for all tensors with its options, and rules for tensors of some names."""

    name: str | None
    options: dict[str, str]
    rules: dict[str, str]


def called(repo: Repository, commit: CommitId) -> str:
    """The branch whose tip a commit is, or its short id."""
    refs = repo.view().refs
    names = sorted(ref.partition("/")[2] for ref, tip in refs.items() if tip == commit and not ref.startswith("tags/"))
    return names[0] if names else commit.short


def heading(theirs: str, theirs_id: CommitId, ours: str | None, ours_id: CommitId, base: CommitId | None) -> list[Part]:
    """`Merging tone (b71e5520c9aa) into main (91cd04e6b7aa), base 3f9c2a71d0be`."""
    into: list[Part] = [blue(ours), f" ({ours_id.short})"] if ours else [yellow(ours_id.short)]
    found = f", base {base.short}" if base is not None else ", no common ancestor"
    return ["Merging ", blue(theirs), f" ({theirs_id.short}) into ", *into, found]


def plan_lines(
    plan: MergePlan, *, ours: str, theirs: str, strategy: str, overlaps: Sequence[Overlap] = ()
) -> list[list[Part]]:
    """How many tensors each rule decides, one line a rule."""
    combined = strategy
    overlap = sum(item.values for item in overlaps)
    agree = overlap - sum(item.opposed for item in overlaps)
    if overlap:
        combined += f"; {plural(overlap, 'value')} overlap, {share(agree, overlap)} agree in sign"
    rules: tuple[tuple[Action, str, Part], ...] = (
        ("keep", "unchanged on both sides", ""),
        ("ours", f"changed on {ours} only", dim("keep")),
        ("theirs", f"changed on {theirs} only", dim("take")),
        ("both-same", "changed alike on both", dim("keep")),
        ("combine", "changed on both", dim(combined)),
        ("conflict", "conflict", ""),
    )
    rows: list[list[Part]] = []
    for action, words, decision in rules:
        number = plan.counts.get(action, 0)
        if number:
            rows.append([f"{amount(number)} {'tensor ' if number == 1 else 'tensors'}", words, decision])
    sides = {"ours": f"changed on {ours} only", "theirs": f"changed on {theirs} only"}
    open_paths = {conflict.path for conflict in plan.conflicts}
    rows += [
        ["1 file   ", file.path, dim(sides.get(file.action, file.reason))]
        for file in plan.files
        if file.action not in ("keep", "both-same", "conflict") and file.path not in open_paths
    ]
    return columns(rows, right=[0], indent=2)


def sign_lines(signs: Sequence[Overlap]) -> list[list[Part]]:
    """One line for each of the worst tensors that the sides moved apart, and how many more there are."""
    rows: list[list[Part]] = [
        [
            yellow("SIGNS"),
            item.name,
            f"{share(item.opposed, item.values)} of the {plural(item.values, 'value')} that both changed move apart",
        ]
        for item in signs[:_SIGNS]
    ]
    lines = columns(rows)
    if len(signs) > _SIGNS:
        lines.append(
            [dim(f"and {plural(len(signs) - _SIGNS, 'more tensor')} (`mgit merge REV --plan --json` has all)")]
        )
    return lines


def conflict_lines(conflicts: Sequence[Conflict], *, ours: str, theirs: str) -> list[list[Part]]:
    """One line a conflict: what, and what the two sides say."""
    rows: list[list[Part]] = []
    for conflict in conflicts:
        says = f": {ours} {conflict.ours}, {theirs} {conflict.theirs}" if conflict.ours or conflict.theirs else ""
        rows.append([red("CONFLICT"), _name(conflict), _reason(conflict) + says])
    return columns(rows, gap=1) if len(rows) == 1 else columns(rows)


def _name(conflict: Conflict) -> str:
    # A tensor's name says more than its model's path; a file's key says nothing without the file.
    return (
        conflict.path
        if conflict.kind in ("key", "text", "binary", "vocabulary", "learned") or not conflict.item
        else conflict.item
    )


def _reason(conflict: Conflict) -> str:
    reasons = {
        "shape": "shapes differ",
        "dtype": "dtypes differ",
        "integer": "integers cannot be averaged",
        "deleted-changed": "one side deleted it, the other changed it",
        "added-added": "both added it, differently",
        "text": "both changed the same lines",
        "key": f"both changed {conflict.item}",
        "binary": "both changed it",
        "signs": "the sides move apart",
        "tokens": "both sides added a token",
        "vocabulary": "the vocabularies cannot be matched",
        "learned": "the tokenizers contradict each other",
    }
    return reasons.get(conflict.kind, conflict.kind)


def parse_strategies(texts: tuple[str, ...]) -> ChosenStrategy:
    """Read `--strategy` values.  Raises UsageError for one that is not NAME or PATTERN=NAME."""
    name: str | None = None
    options: dict[str, str] = {}
    rules: dict[str, str] = {}
    for text in texts:
        rule = split_rule(text)
        if rule is not None:
            rules[rule[0]] = rule[1]
            continue
        first, *pairs = text.split() or [""]
        if name is not None:
            raise UsageError(f"two strategies for all tensors: {name} and {first}", hint="--strategy 'PATTERN=NAME'")
        name = first
        for pair in pairs:
            key, equals, value = pair.partition("=")
            if not equals:
                raise UsageError(f"`{pair}` in `{text}` is not option=value", hint="--strategy 'average weights=2,1'")
            if key in options:
                raise UsageError(f"`{text}` sets {key} twice", hint=f"--strategy '{first} {key}={value}'")
            options[key] = value
    return ChosenStrategy(name, options, rules)
