"""The parts of `mgit check` that need no model code: objects, patch, schema, files, safety."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from modelgit.amounts import counted, size_text
from modelgit.errors import ExternalAbsentError, IntegrityError, MgitError
from modelgit.formats.detect import scan_reader
from modelgit.formats.lookalikes import is_torch_name
from modelgit.formats.pickle_walker import PickleWindow, Walker
from modelgit.formats.torch_globals import is_allowed
from modelgit.objects import (
    CheckResult,
    CheckSection,
    Commit,
    CommitId,
    FileEntry,
    Finding,
    Outcome,
    Patch,
    PatchFacts,
    TensorSpec,
)
from modelgit.objects.checks import worst
from modelgit.parallel import Workers
from modelgit.patching.files import StoredFile
from modelgit.progress import SILENT, Progress
from modelgit.remotes.base import Needed
from modelgit.remotes.closure import closure, shown_name
from modelgit.remotes.receive import verify_objects
from modelgit.repo.changes import compare_manifests
from modelgit.repo.reviews.patch_facts import Tree, code_paths
from modelgit.repo.upkeep.pruned import pruned_commits
from modelgit.reporting.wording import share

if TYPE_CHECKING:
    from modelgit.repo.repository import Repository

__all__ = [
    "builtin_section",
    "objects_section",
    "outcome_of",
    "patch_section",
    "safety_section",
    "schema_section",
    "section",
]

_OUTCOMES: Mapping[str, Outcome] = {
    "pass": "pass",
    "info": "pass",
    "baseline": "pass",
    "warn": "warn",
    "fail": "fail",
    "error": "error",
    "inconclusive": "inconclusive",
    "pending": "inconclusive",
}
_LEVELS: Mapping[str, Outcome] = {"error": "fail", "warning": "warn", "note": "pass"}
_PICKLES = (".pkl", ".pickle", ".joblib", ".dill")
_SHOWN = 20


def section(name: str, summary: str, findings: Sequence[Finding] = ()) -> CheckSection:
    """A section whose outcome is that of its worst finding, "pass" without any; the caller times it."""
    outcome = worst(["pass", *(_LEVELS[finding.level] for finding in findings)])
    return CheckSection(name=name, outcome=outcome, summary=summary, findings=tuple(findings), seconds=0.0)


def outcome_of(decision: str) -> Outcome:
    """What the decision of a verdict is among the outcomes of a check."""
    return _OUTCOMES[decision]


def objects_section(
    repo: Repository, commits: Mapping[CommitId, Commit], *, progress: Progress = SILENT
) -> CheckSection:
    """Whether everything that the new commits need is here, and is what its id says: every object is rebuilt.

    Weights that retention took are no part of it.
    """
    try:
        items = list(closure(repo.store, dict(commits), pruned=pruned_commits(repo)))
    except MgitError as error:
        finding = Finding(rule="objects/missing", level="error", message=error.message, hint=error.hint or "")
        return section("objects", "the new commits are not here whole", [finding])
    findings: list[Finding] = []
    away = 0
    progress.start("verify", len(items), unit="objects")

    def verify(item: Needed) -> MgitError | None:
        progress.check()
        try:
            verify_objects(repo.store, [item], threads=1, where="this repository")
        except IntegrityError as error:
            return error
        return None

    with Workers(repo.threads, name="mgit-check") as workers:
        for item, fault in zip(items, workers.ordered(verify, items, ahead=4 * repo.threads), strict=True):
            progress.advance("verify", 1)
            if isinstance(fault, ExternalAbsentError):
                away += 1
            elif fault is not None:
                message = f"{item.id.KIND} {item.id.short} ({item.name}): {fault.message}"
                hint = "`mgit fetch --repair` gets a good copy"
                findings.append(Finding(rule="objects/damaged", level="error", message=message, hint=hint))
    progress.finish("verify")
    if away:
        message = f"{counted(away, 'object')} of a published model that is not on this machine could not be compared"
        findings.append(Finding(rule="objects/elsewhere", level="warning", message=message))
    bad = sum(finding.level == "error" for finding in findings)
    summary = f"{len(items) - bad - away:,} of {counted(len(items), 'object')} present, digests verified"
    return section("objects", summary, findings)


def patch_section(
    repo: Repository, commits: Mapping[CommitId, Commit], facts: PatchFacts, *, behind: int, base: str
) -> CheckSection:
    """How large the patch is, whether it is exact, and whether the commits say truly what they change."""
    findings: list[Finding] = []
    for commit_id, commit in commits.items():
        patch = repo.records.read(repo.store, commit.patch, Patch)
        if not patch.exact:
            message = f"commit {commit_id.short} ({commit.subject[:60]!a}) holds a lossy patch, as it says"
            findings.append(Finding(rule="patch/lossy", level="warning", message=message, commit=commit_id))
        forced = [verdict for verdict in commit.verdicts if outcome_of(verdict.decision) not in ("pass", "warn")]
        if forced and forced[0].decision != "pending":
            message = f"commit {commit_id.short} was recorded although its gate said {forced[0].decision}"
            findings.append(Finding(rule="patch/override", level="warning", message=message, commit=commit_id))
        problem = _misstated(repo, commit, patch)
        if problem:
            message = f"commit {commit_id.short} does not say truly what it changes: {problem}"
            findings.append(Finding(rule="patch/misstated", level="error", message=message, commit=commit_id))
    if behind:
        findings.append(
            Finding(
                rule="patch/behind",
                level="warning",
                message=f"{base} has {counted(behind, 'commit')} that are not in this history, so it cannot move here",
                hint=f"`mgit merge {base}`",
            )
        )
    number = facts.values_changed
    changed = f"{share(number, facts.values)} of values, " if number is not None and facts.values else ""
    exact = f"{counted(len(facts.lossy), 'lossy commit')}" if facts.lossy else "exact"
    size = size_text(facts.bytes_added)
    return section("patch", f"{exact}, {counted(facts.commits, 'commit')}, {changed}{size}", findings)


def _misstated(repo: Repository, commit: Commit, patch: Patch) -> str:
    """What a patch record says otherwise than the manifests; "" when it is true."""
    parent = commit.parents[0] if commit.parents else None
    if patch.base != (None if parent is None else repo.commit_at(parent).manifest):
        return "its patch is against something else than its parent"
    found = compare_manifests(repo, repo.manifest_of(parent), repo.manifest_at(commit.manifest))
    said = {(change.model, change.name): change.kind for change in patch.tensors}
    true = {(change.model, change.name): change.kind for change in found.tensors}
    if said != true:
        differ = sorted({*said.items()} ^ {*true.items()})
        (_, name), kind = differ[0]
        more = f" and {len(differ) - 1} more" if len(differ) > 1 else ""
        return f"{shown_name(name)} ({kind}){more}"
    if {change.path for change in patch.files} != {change.path for change in found.files}:
        return "it lists other files than those that differ"
    return ""


def schema_section(old: Tree, new: Tree) -> CheckSection:
    """Names, shapes and dtypes of all tensors: what went, came or changed its form."""
    before, after = old.tensors(), new.tensors()
    if not old.manifest.models:
        return CheckSection(
            name="schema", outcome="skip", summary=f"{counted(len(after), 'tensor')}, nothing to compare", seconds=0.0
        )
    findings = []
    for (model, name), entry in before.items():
        fresh = after.get((model, name))
        if fresh is None:
            findings.append(_schema("removed", model, name, f"{shown_name(name)} {_form(entry.spec)} is gone"))
        elif fresh.spec != entry.spec:
            message = f"{shown_name(name)} was {_form(entry.spec)} and is {_form(fresh.spec)}"
            findings.append(_schema("respecified", model, name, message))
    for (model, name), entry in after.items():
        if (model, name) not in before:
            findings.append(_schema("added", model, name, f"{shown_name(name)} {_form(entry.spec)} is new"))
    if not findings:
        return section("schema", "names, dtypes and shapes unchanged")
    kinds = [finding.rule.rpartition("/")[2] for finding in findings]
    words = {"removed": "removed", "respecified": "of another form", "added": "added"}
    summary = ", ".join(f"{kinds.count(kind):,} {word}" for kind, word in words.items() if kind in kinds)
    return section("schema", f"tensors: {summary}", _first(findings))


def _schema(kind: str, model: str, name: str, message: str) -> Finding:
    return Finding(rule=f"schema/{kind}", level="warning", message=message, path=model, tensor=shown_name(name))


def _form(spec: TensorSpec) -> str:
    return f"{spec.dtype} {list(spec.shape)}"


def builtin_section(name: str, rule: str, result: CheckResult) -> CheckSection:
    """A line of the built-in gate as a section."""
    outcome = outcome_of(result.decision)
    if outcome in ("pass", "skip"):
        return CheckSection(name=name, outcome=outcome, summary=result.detail or "as before", seconds=0.0)
    level = "warning" if outcome == "warn" else "error"
    finding = Finding(rule=rule, level="warning" if level == "warning" else "error", message=result.detail)
    return CheckSection(name=name, outcome=outcome, summary=result.detail, findings=(finding,), seconds=0.0)


def safety_section(new: Tree, facts: PatchFacts, changed: Sequence[FileEntry]) -> CheckSection:
    """Whether anything in the changed files runs, or makes others run, when the model is loaded."""
    findings = list(_unsafe_files(new, changed))
    for rule, paths, words, hint in (
        ("safety/code", facts.code, "is code", "read it before anybody loads the model"),
        ("safety/auto-map", facts.auto_map, "names a class to import", "`trust_remote_code` would run it"),
        (
            "safety/tokenizer",
            facts.tokenizer,
            "belongs to the tokenizer and changed",
            "the same text may read otherwise",
        ),
        ("safety/chat-template", facts.chat_template, "holds a chat template that changed", "compare what it says"),
    ):
        for path in paths:
            file, _, name = path.partition(": ")
            message = f"{file} {words}{f': {shown_name(name)}' if name else ''}"
            findings.append(Finding(rule=rule, level="warning", message=message, hint=hint, path=file))
    if not findings:
        return section("safety", "no pickle with foreign names, no code, tokenizer and chat template as before")
    errors = sum(finding.level == "error" for finding in findings)
    summary = f"{counted(errors, 'file')} that must not be loaded" if errors else "changes that run or are read as code"
    return section("safety", summary, _first(findings))


def _unsafe_files(new: Tree, changed: Sequence[FileEntry]) -> Iterator[Finding]:
    """Pickles, in checkpoints and elsewhere, that name what no checkpoint needs; archives that hold programs."""
    reader = new.repo.reader(new.store)
    for entry in changed:
        content = new.repo.content_at(entry.digest, store=new.store)
        if content.format in ("safetensors", "gguf", "npy", "onnx-data") or list(code_paths([entry.path])):
            continue
        file = StoredFile(reader, content, shown=entry.path)
        head = file.read(0, min(file.size, 4096))
        name = entry.path.lower()
        try:
            if is_torch_name(name) or head.startswith(b"PK\3\4"):
                found = scan_reader(file)
                if "code" in found.note:
                    message = f"{entry.path} is {found.note}"
                    yield Finding(rule="safety/program", level="warning", message=message, path=entry.path)
            elif name.endswith(_PICKLES) or (head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5")):
                Walker(PickleWindow(file, 0, file.size), is_allowed).walk()
        except IntegrityError:
            raise
        except MgitError as error:
            hint = "do not load it: `torch.load` and `pickle.load` may run what it names"
            yield Finding(rule="safety/pickle", level="error", message=error.message, hint=hint, path=entry.path)
        if PurePosixPath(name).suffix in (".h5", ".keras", ".nemo", ".mar"):
            message = f"{entry.path} may hold code, and mgit does not look into such files"
            yield Finding(rule="safety/unread", level="warning", message=message, path=entry.path)


def _first(findings: Sequence[Finding]) -> list[Finding]:
    """The worst findings, at most twenty, and how many more there are."""
    ordered = sorted(findings, key=lambda finding: ("error", "warning", "note").index(finding.level))
    more = len(ordered) - _SHOWN
    if more <= 0:
        return ordered
    last = ordered[_SHOWN]
    rest = Finding(rule=last.rule, level=last.level, message=f"and {more:,} more of this kind and others")
    return [*ordered[:_SHOWN], rest]
