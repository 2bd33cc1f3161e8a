"""`check`: whether an update may land on a base, as facts that anybody can compute again."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from modelgit.amounts import counted
from modelgit.errors import MgitError
from modelgit.objects import (
    LETS_IN,
    CheckReport,
    CheckSection,
    Commit,
    CommitId,
    EvalRecord,
    Finding,
    Manifest,
    PatchFacts,
)
from modelgit.objects.graph import ancestors, merge_bases
from modelgit.objects.refs import TAGS
from modelgit.progress import SILENT, Progress
from modelgit.remotes.closure import new_commits
from modelgit.repo.gates.gate import builtin_record
from modelgit.repo.reviews.patch_facts import Tree, gather_facts
from modelgit.repo.reviews.policy import policy_section, signatures_section, tag_section
from modelgit.repo.reviews.sections import (
    builtin_section,
    objects_section,
    outcome_of,
    patch_section,
    safety_section,
    schema_section,
    section,
)
from modelgit.repo.revisions import branch_of, find_ref

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository
    from modelgit.repo.reviews.tensors import TensorsCompared

__all__ = ["check"]

_MAX_SUSPECTS = 20


def check(
    repo: Repository,
    base: str,
    revision: str | None = None,
    *,
    suites: Collection[str] | None = None,
    progress: Progress = SILENT,
) -> CheckReport:
    """Check what `revision` (HEAD) brings over `base`.

    Sizes, tensors and files are compared with the last commit that both share, suites with `base` itself, whose suites,
    signers and policies count.  A tag is also judged as one, by those policies of `base` that protect it.  `suites` are
    the names of those to run: all of `base` (None), or none at all (empty).  A part that cannot be found out is an
    "error" in the report.  Raises UnknownRevision for names that mean nothing.
    """
    started = time.monotonic()
    base_commit, commit = repo.resolve(base), repo.resolve(revision or "HEAD")
    stop = set(ancestors([base_commit], repo.parents_of))
    commits = new_commits(repo.store, [commit], stop=stop)
    shared = merge_bases(base_commit, commit, repo.parents_of)
    old = Tree(repo, repo.manifest_of(shared[0] if shared else base_commit), repo.store)
    new = Tree(repo, repo.manifest_of(commit), repo.store)
    ours = set(ancestors([commit], repo.parents_of))
    run = _Check(
        repo=repo,
        base=base,
        base_commit=base_commit,
        commit=commit,
        branch=branch_of(repo, base)[1],
        ref=find_ref(repo.view(), revision or "HEAD") or "",
        commits=commits,
        behind=len(stop - ours),
        old=old,
        new=new,
        suites=suites,
        progress=progress,
    )
    sections = tuple(run.sections())
    return CheckReport(
        revision=revision or "HEAD",
        commit=commit,
        base=base,
        base_commit=base_commit,
        branch=run.branch,
        commits=tuple(commits),
        facts=run.facts,
        sections=sections,
        seconds=round(time.monotonic() - started, 3),
    )


@dataclass(kw_only=True)
class _Check:
    repo: Repository
    base: str
    base_commit: CommitId
    commit: CommitId
    branch: str
    ref: str
    commits: Mapping[CommitId, Commit]
    behind: int
    old: Tree
    new: Tree
    suites: Collection[str] | None
    progress: Progress
    facts: PatchFacts = field(default_factory=PatchFacts)
    compared: TensorsCompared | None = None
    verdicts: list[EvalRecord] = field(default_factory=list)

    def sections(self) -> Iterator[CheckSection]:
        """All parts, in the order in which they are told; an error in one does not keep the others from running."""
        if not self.commits:
            words = f"{self.commit.short} brings nothing that {self.base} does not have"
            yield CheckSection(name="patch", outcome="skip", summary=words, seconds=0.0)
            tagged = list(self._part("tag policy", self._tag_policy))
            yield from self._part("signatures", self._signatures) if tagged else ()
            yield from tagged
            return
        yield from self._part("objects", lambda: [objects_section(self.repo, self.commits, progress=self.progress)])
        yield from self._part("patch", self._patch)
        yield from self._part("schema", lambda: [schema_section(self.old, self.new)])
        yield from self._part("values", self._values)
        yield from self._part("safety", self._safety)
        yield from self._part("suspicious", self._suspicious)
        yield from self._part("signatures", self._signatures)
        if self.suites is None or self.suites:
            yield from self._suites()
        yield from self._part("policy", self._policy)
        yield from self._part("tag policy", self._tag_policy)

    def _part(self, name: str, make: Callable[[], Sequence[CheckSection]]) -> Iterator[CheckSection]:
        started = time.monotonic()
        try:
            made = make()
        except MgitError as error:
            made = [_unknown(name, error)]
        seconds = round(time.monotonic() - started, 3)
        for number, item in enumerate(made):
            yield msgspec.structs.replace(item, seconds=seconds) if not number else item

    def _patch(self) -> Sequence[CheckSection]:
        from modelgit.repo.reviews.tensors import compare_changed

        self.facts = gather_facts(self.old, self.new, self.commits, store=self.repo.store)
        self.compared = compare_changed(self.old, self.new, threads=self.repo.threads, progress=self.progress)
        self.facts = msgspec.structs.replace(
            self.facts, values_changed=self.compared.values_changed, dense=self.compared.dense
        )
        return [patch_section(self.repo, self.commits, self.facts, behind=self.behind, base=self.base)]

    def _values(self) -> Sequence[CheckSection]:
        record = builtin_record(
            self.repo,
            self.repo.store,
            self.new.manifest,
            self.old.manifest if self.old.manifest.models else None,
            counted=self.compared.counted if self.compared is not None else None,
            progress=self.progress,
        )
        results = {result.name: result for result in record.results}
        return [
            builtin_section("values", "values/nonfinite", results["finite values"]),
            builtin_section("files", "files/unreadable", results["files"]),
        ]

    def _safety(self) -> Sequence[CheckSection]:
        before = {entry.path: entry.digest for entry in self.old.manifest.files}
        changed = [entry for entry in self.new.manifest.files if before.get(entry.path) != entry.digest]
        return [safety_section(self.new, self.facts, changed)]

    def _suspicious(self) -> Sequence[CheckSection]:
        if self.compared is None:
            return [CheckSection(name="suspicious", outcome="error", summary="nothing was compared", seconds=0.0)]
        found = self.compared.findings
        if not found:
            words = "no tensor, row or value stands out among those that changed"
            return [section("suspicious", words)]
        more = len(found) - _MAX_SUSPECTS
        shown = list(found[:_MAX_SUSPECTS])
        if more > 0:
            shown.append(Finding(rule="suspicious/more", level="warning", message=f"and {more:,} more"))
        words = f"{counted(len(found), 'thing')} to look at: training hardly ever does this"
        return [section("suspicious", words, shown)]

    def _signatures(self) -> Sequence[CheckSection]:
        return [signatures_section(self.old._replace(manifest=self._law()), self.new, self.commit, self.commits)]

    def _policy(self) -> Sequence[CheckSection]:
        return [policy_section(self.repo, self.base, self.base_commit, self.commit, self.facts)]

    def _tag_policy(self) -> Sequence[CheckSection]:
        """Nothing where what is checked is no tag, or none that is protected."""
        if not self.ref.startswith(TAGS):
            return []
        found = tag_section(self.repo, self.base, self.base_commit, self.ref, self.commit)
        return [] if found is None else [found]

    def _law(self) -> Manifest:
        """What counts: the suites, signers and policies of the base."""
        return self.repo.manifest_of(self.base_commit)

    def _suites(self) -> Iterator[CheckSection]:
        started = time.monotonic()
        try:
            self.verdicts = self._evaluate(self._law())
        except MgitError as error:
            yield msgspec.structs.replace(_unknown("eval", error), seconds=round(time.monotonic() - started, 3))
            return
        for record in self.verdicts:
            yield _verdict_section(record)
        if not self.verdicts:
            yield CheckSection(name="eval", outcome="skip", summary=f"{self.base} has no suites", seconds=0.0)

    def _evaluate(self, law: Manifest) -> list[EvalRecord]:
        from modelgit.repo.gates.baselines import parents_of_merge
        from modelgit.repo.gates.suite_runs import evaluate_manifest

        # A merge may have lost what only the other side had right: "parent" is that side, too.
        others = parents_of_merge(self.repo, self.repo.parents_of(self.commit), [self.base_commit])
        return evaluate_manifest(
            self.repo,
            self.repo.store,
            self.new.manifest,
            (self.base_commit, *(side.commit for side in others)),
            suites=sorted(self.suites or ()),
            law=law,
            progress=self.progress,
        )


def _unknown(name: str, error: MgitError) -> CheckSection:
    """A part that could not be found out."""
    finding = Finding(rule=f"{name}/error", level="error", message=error.message, hint=error.hint or "")
    return CheckSection(name=name, outcome="error", summary=error.message, findings=(finding,), seconds=0.0)


def _verdict_section(record: EvalRecord) -> CheckSection:
    broken = [result for result in record.results if result.decision not in LETS_IN]
    lines = len(record.results)
    summary = f"{lines - len(broken)} of {counted(lines, 'line')} pass"
    if record.examples:
        summary += f", {record.examples:,} examples"
    return CheckSection(
        name=f"eval {record.suite}",
        outcome=outcome_of(record.decision),
        summary=summary,
        evaluation=record,
        seconds=record.seconds,
    )
