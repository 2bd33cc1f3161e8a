"""How refs that moved read in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from modelgit.cli._format import plural, size
from modelgit.cli._output import Part, blue, bold, columns, green, red, yellow

if TYPE_CHECKING:
    from modelgit.objects import CommitId, KeptNote
    from modelgit.remotes.estimates import MovedEstimates
    from modelgit.repo.reviews.ref_policies import RefDecision

__all__ = ["estimates_moved", "move_lines", "notes_moved", "policy_lines", "ref_words", "transferred"]


def ref_words(ref: str) -> str:
    """`heads/main` as `main`, `tags/v1` as `tag v1`, `remotes/origin/main` as `origin/main`."""
    kind, _, name = ref.partition("/")
    return f"tag {name}" if kind == "tags" else name


def move_lines(moves: Iterable[tuple[str, CommitId | None, CommitId | None]]) -> list[list[Part]]:
    """One line a ref: `main  3f9c2a71d0be → c0ffee12ab34`."""
    rows: list[list[Part]] = []
    for ref, old, new in moves:
        if new is None:
            rows.append([blue(ref_words(ref)), f"{old.short} → deleted" if old is not None else "deleted"])
        elif old is None:
            rows.append([blue(ref_words(ref)), f"new → {new.short}"])
        else:
            rows.append([blue(ref_words(ref)), f"{old.short} → {new.short}"])
    return columns([[name, yellow(what)] for name, what in rows], indent=2)


def estimates_moved(moved: MovedEstimates, verb: str) -> str:
    """`  2 Fisher estimates sent, 32.1 KiB`."""
    if not moved.estimates:
        return f"  no Fisher estimate {verb}: there is none that the other side lacks"
    return f"  {plural(len(moved.estimates), 'Fisher estimate')} {verb}, {size(moved.bytes_moved)}"


def notes_moved(notes: Sequence[KeptNote], verb: str) -> str:
    """`  2 verdicts and 1 acceptance sent`; empty for none."""
    kinds = {"test-result": "verdict", "acceptance": "acceptance", "approval": "approval"}
    counts = {word: sum(item.kind == kind for item in notes) for kind, word in kinds.items()}
    words = [plural(count, word) for word, count in counts.items() if count]
    return f"  {' and '.join(words)} {verb}" if words else ""


def policy_lines(found: RefDecision) -> Iterator[list[Part]]:
    """What the policies of one branch or tag say: a line each, then every refusal with what to do about it."""
    for decision in found.decisions:
        head: list[Part] = ["  policy ", bold(decision.policy), " of ", blue(found.update.shown), ": "]
        if decision.overridden:
            yield [*head, yellow(f"overridden by {decision.overridden}"), " (advisory)"]
        elif decision.allowed:
            notes = "".join(f"; {note}" for note in decision.notes)
            yield [*head, green("kept"), f" (advisory: the remote cannot enforce it{notes})"]
        else:
            yield [*head, red("refuses")]
        for refusal in decision.refusals:
            yield [f"    {refusal.rule}: {refusal.message}"]
            if not decision.overridden:
                yield [f"      hint: {refusal.hint}"]


def transferred(commits: int, objects: int, size_bytes: int) -> str:
    """`2 patches, 14 objects, 3.3 MiB`."""
    return f"{plural(commits, 'patch', 'patches')}, {plural(objects, 'object')}, {size(size_bytes)}"
