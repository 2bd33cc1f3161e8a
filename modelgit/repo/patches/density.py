"""`commit --density`: a dense change becomes a sparse patch without training, measured as it will come back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from modelgit.errors import CheckFailed, NothingToDo, UsageError
from modelgit.fisher.density_search import Tried, smallest_density
from modelgit.objects import FileEntry, Manifest, ModelEntry
from modelgit.patching.jobs import SourceChangedError, Stored
from modelgit.progress import SILENT, Progress
from modelgit.repo.changes import compare_manifests
from modelgit.repo.contents import tensors_of
from modelgit.repo.patches.density_judge import Compared, Judge, open_judge
from modelgit.repo.tasks import task_settings
from modelgit.repo.tracking.commit import BegunCommit, begin_commit, check_lossless, check_request, publish_commit
from modelgit.repo.tracking.commit_records import NO_TRAINING_STATE, CommitResult, count_encodings, write_commit
from modelgit.repo.tracking.dense_weights import keep_dense
from modelgit.repo.tracking.record import RecordedTree, nonfinite_counts, record_worktree
from modelgit.repo.tracking.training import record_training
from modelgit.store.session import PackSession

if TYPE_CHECKING:
    from pathlib import Path

    from modelgit.fisher.sparsify import Kept, Survey
    from modelgit.repo.patches.patched_model import DenseChange
    from modelgit.repo.repository import Repository

__all__ = ["DEFAULT_EXAMPLES", "Reduced", "commit_patch"]

DEFAULT_EXAMPLES = 512


@dataclass(frozen=True, kw_only=True)
class Reduced:
    """A commit of a sparse patch, and what became of the dense change of the model at `model`.

    `exact` names tensors that nothing can be drawn from (new ones, other types or shapes).  `compared` is None without
    a task and data, for which `note` has the reason.  Where several patches were drawn, `draws` has the KL of each from
    the dense model, on the inputs of the Fisher pass (None: infinite), and `draw` is the one that was taken, from 1.
    `bytes_patch` is what the weights take in the store, `bytes_dense` what they would have taken.  `rescued` is where
    the dense weights are, None when they never were in the work tree.
    """

    commit: CommitResult
    model: str
    density: float
    importance: str
    seed: int
    draw: int
    draws: tuple[float | None, ...]
    kept: Kept
    exact: tuple[str, ...]
    task: str | None
    fisher: str | None
    compared: Compared | None
    note: str | None
    tried: tuple[Tried, ...]
    bytes_patch: int
    bytes_dense: int
    rescued: Path | None


class _Attempt(NamedTuple):
    """A patch that lies in a session of its own and may become the commit.

    `cost` is what chooses among several draws, `compared` what is measured of the one that is taken: None when nothing
    can be measured, or, with an infinite cost, when the model is broken.
    """

    session: PackSession
    kept: Kept
    tree: RecordedTree
    bytes_patch: int
    draw: int
    cost: float
    compared: Compared | None = None
    draws: tuple[float | None, ...] = ()

    @property
    def kl(self) -> float:
        """What was measured."""
        return self.compared.kl if self.compared is not None else self.cost

    def give_up(self) -> None:
        """Forget what was written."""
        self.session.abort()


def commit_patch(
    repo: Repository,
    message: str,
    *,
    density: float | None = None,
    max_kl: float | None = None,
    importance: str = "fisher",
    seed: int = 0,
    draws: int = 1,
    task: str | None = None,
    examples: int = DEFAULT_EXAMPLES,
    only: Sequence[str] = (),
    gate: str = "block",
    source: str | None = None,
    as_path: str | None = None,
    worktree: bool = True,
    branch: str | None = None,
    author: str | None = None,
    progress: Progress = SILENT,
) -> Reduced:
    """Commit the `density` share of one model's dense change, or the smallest whose measured KL is below `max_kl`.

    `importance` is one of `fisher.changes.IMPORTANCES`; `seed` belongs to its draws.  Of `draws` patches the one with
    the least KL on the inputs of the Fisher pass is taken, and what it costs is measured on others.  The task says how
    the model computes and on what: with `importance` "fisher" its diagonal is taken at the dense weights on `examples`
    inputs.  The other arguments are those of `commit`.  What is recorded, gated and left in the work tree is the
    patched model; the dense weights of the work tree go into the rescue area, and `undo` brings them back.

    Raises what `commit` raises, and UsageError when data are needed and not named, or the density has no room for the
    head.  In each case nothing was recorded and the work tree is as it was.
    """
    if (density is None) == (max_kl is None):
        raise UsageError("say how much is kept, or what it may cost", hint="`--density 0.5%` or `--max-kl 0.01`")
    if max_kl is not None and not max_kl > 0:
        raise UsageError(f"a KL divergence of at most {max_kl:g} leaves nothing out", hint="`--max-kl 0.01`")
    check_request(message, only=only, gate=gate, source=source, as_path=as_path, worktree=worktree, branch=branch)
    with repo.writing():
        opened = begin_commit(repo, only=only, source=source, as_path=as_path, worktree=worktree, branch=branch)
        if opened.parent is None:
            raise UsageError("there is no commit that a patch could be against", hint="`mgit commit -m …` records all")
        with repo.session() as dense_session:
            try:
                return _Reduction(
                    repo, opened, dense_session, message, importance, seed, draws, task, examples, gate, author,
                    progress,
                ).run(density, max_kl)  # fmt: skip
            finally:
                dense_session.abort()


class _Reduction:
    """One run of `commit_patch`."""

    def __init__(
        self,
        repo: Repository,
        opened: BegunCommit,
        dense_session: PackSession,
        message: str,
        importance: str,
        seed: int,
        draws: int,
        task: str | None,
        examples: int,
        gate: str,
        author: str | None,
        progress: Progress,
    ) -> None:
        self.repo, self.opened, self.dense_session = repo, opened, dense_session
        self.message, self.importance, self.seed, self.gate, self.author = message, importance, seed, gate, author
        self.progress = progress
        self.draws = draws
        self.dense = record_worktree(
            repo, dense_session, opened.before, only=opened.selected, outside=opened.outside, progress=progress
        )
        check_lossless(repo, opened, self.dense.manifest, progress=progress)
        name, self.model = self._model(task)
        self.note: str | None = None
        self.judge: Judge | None = None
        self.change: DenseChange
        self.fisher_words: str | None = None
        self.survey = self._survey(name, examples)
        self.tried: tuple[Tried, ...] = ()
        self._check_draws()

    # -- what is to be reduced, and by what

    def _model(self, task: str | None) -> tuple[str | None, ModelEntry]:
        """The task, if one is named or clear, and the model whose weights changed."""
        before, after = self.opened.before, self.dense.manifest
        changed = [
            model for model in after.models if any(before.file(path) != after.file(path) for path in model.weights)
        ]
        if not changed:
            raise NothingToDo("no weights changed since the last commit", hint="`mgit commit -m …` records the rest")
        tasks = self.repo.settings.task
        if task is not None:
            name, settings = task_settings(self.repo, task)
            found = [model for model in changed if model.path == settings.model]
            if not found:
                raise UsageError(
                    f"the model of task {name}, {settings.model}, did not change",
                    hint="`mgit status` shows what changed; `--task NAME` names a task of that model",
                )
            return name, found[0]
        if len(changed) > 1:
            raise UsageError(
                f"which model? {len(changed)} changed: {', '.join(model.path for model in changed)}",
                hint="`--task NAME` says by which task, `--only PATH` commits one of them",
            )
        fitting = [name for name, settings in tasks.items() if settings.model == changed[0].path]
        return (fitting[0] if len(fitting) == 1 else None), changed[0]

    def _survey(self, name: str | None, examples: int) -> Survey:
        from modelgit.fisher.changes import IMPORTANCES, NEEDS_FISHER
        from modelgit.fisher.sparsify import survey

        if self.importance not in IMPORTANCES:
            raise UsageError(f"no importance `{self.importance}`", hint=f"known: {', '.join(IMPORTANCES)}")
        try:
            self.judge = open_judge(self.repo, self.dense_session, self.dense.manifest, self.model.path, name)
        except UsageError as error:
            if self.importance in NEEDS_FISHER:
                hint = f"{error.hint}; " if error.hint else ""
                raise UsageError(error.message, hint=f"{hint}`--importance magnitude` needs no data") from error
            self.note = error.message
        diagonal = None
        if self.judge is not None:
            diagonal, self.fisher_words = self.judge.diagonal(examples=examples, seed=self.seed, progress=self.progress)
        from modelgit.repo.patches.patched_model import dense_change

        self.change = dense_change(
            self.repo,
            self.dense_session,
            self.opened.before,
            self.dense.manifest,
            self.model,
            head=self._head(),
            preferred=tuple(diagonal or ()),
        )
        return survey(
            self.change.deltas,
            elements=self.change.elements,
            taken=self.change.taken,
            importance=self.importance,
            fisher=diagonal,
            progress=self.progress,
        )

    def _head(self) -> frozenset[str]:
        if self.judge is not None:
            return self.judge.head
        prefixes = [task.head + "." for task in self.repo.settings.task.values() if task.model == self.model.path]
        names = tensors_of(self.repo, self.dense.manifest, self.model, store=self.dense_session)
        return frozenset(name for name in names if any(name.startswith(prefix) for prefix in prefixes))

    # -- attempts

    def run(self, density: float | None, max_kl: float | None) -> Reduced:
        """Find the patch, gate it, record it."""
        if density is not None:
            attempt = self._attempt(density)
        elif self.judge is None:
            raise UsageError(
                f"the KL divergence cannot be measured: {self.note}", hint="`--density 0.5%` needs no measurement"
            )
        else:
            density, attempt, self.tried = smallest_density(
                self.survey, max_kl or 0.0, lambda guess: self._attempt(guess, may_break=True)
            )
        try:
            return self._record(density, attempt)
        except BaseException:
            attempt.give_up()
            raise

    def _check_draws(self) -> None:
        if self.draws == 1:
            return
        if self.importance.startswith("top-k"):
            raise UsageError(f"{self.importance} draws nothing: there is one such patch", hint="leave out `--draws`")
        if self.judge is None:
            raise UsageError(f"several draws cannot be compared: {self.note}", hint="leave out `--draws`")

    def _attempt(self, density: float, *, may_break: bool = False) -> _Attempt:
        """The patch of a density, the best of several where so many are drawn, and what it costs.

        Raises CheckFailed for one with which the model's outputs are not finite, unless it `may_break`.
        """
        best = self._drawn(density, 0)
        costs = [best.cost]
        try:
            for number in range(1, self.draws):
                made = self._drawn(density, number)
                costs.append(made.cost)
                best, other = (made, best) if made.cost < best.cost else (best, made)
                other.give_up()
            if self.judge is not None:
                best = self._measured(best, self.judge, may_break=may_break)
        except BaseException:
            best.give_up()
            raise
        known = tuple(cost if math.isfinite(cost) else None for cost in costs)
        return best._replace(draws=known if self.draws > 1 else ())

    def _measured(self, attempt: _Attempt, judge: Judge, *, may_break: bool) -> _Attempt:
        """With what is measured of the patch on inputs that did not choose it."""
        try:
            found = judge.compare(attempt.session, attempt.tree.manifest, judge.measure_on, progress=self.progress)
        except CheckFailed as error:
            if may_break:
                return attempt._replace(cost=math.inf)
            more = "" if self.draws > 1 else ", or `--draws 4`, which takes the best of four"
            raise CheckFailed(
                f"a patch of {100 * attempt.kept.kept / attempt.kept.elements:.3g} % breaks the model: {error.message}",
                hint=f"a higher `--density`{more}",
            ) from error
        return attempt._replace(compared=found)

    def _drawn(self, density: float, number: int) -> _Attempt:
        """Write the patch that a density's draw `number` gives into a session of its own."""
        from modelgit.repo.patches.patched_model import write_patched

        repo, opened = self.repo, self.opened
        plan = self.survey.plan(density, seed=self.seed + number, progress=self.progress)
        session = repo.session()
        try:
            files = write_patched(
                repo, session, self.dense_session, opened.before, self.dense.manifest, self.change, plan,
                progress=self.progress,
            )  # fmt: skip
            others = self._others(session, files.entries)
            dense = self.dense.manifest
            entries = tuple(files.entries.get(entry.path, entry) for entry in dense.files)
            manifest = Manifest(files=entries, models=dense.models)
            cost = 0.0
            if self.draws > 1 and self.judge is not None:
                # Inputs that the diagonal is of: those that the cost is measured on must not choose.
                judge = self.judge
                try:
                    cost = judge.compare(session, manifest, judge.estimate_on, progress=self.progress).kl
                except CheckFailed:  # outputs that are not finite: any other draw is better
                    cost = math.inf
            return _Attempt(
                session,
                plan.kept(progress=self.progress),
                RecordedTree(manifest, {**others, **files.stored}),
                sum(item.bytes_written for items in files.stored.values() for item in items),
                number + 1,
                cost,
            )
        except BaseException:
            session.abort()
            raise

    def _others(self, session: PackSession, patched: Mapping[str, FileEntry]) -> dict[str, list[Stored]]:
        """Store every file that changed beside the patched ones, as it is."""
        dense, selected = self.dense.manifest, self.opened.selected
        paths = {entry.path for manifest in (dense, self.opened.before) for entry in manifest.files} - {*patched}
        wanted = {path: selected is None or selected.get(path, False) for path in paths}
        tree = record_worktree(
            self.repo, session, self.opened.before, only=wanted, outside=self.opened.outside, progress=self.progress
        )
        for path in sorted(paths):
            if tree.manifest.file(path) != dense.file(path):
                raise SourceChangedError(
                    f"{path} changed while it was being committed",
                    hint="wait until nothing writes the file, then run `mgit commit` again",
                )
        return tree.stored

    # -- recording

    def _record(self, density: float, attempt: _Attempt) -> Reduced:
        from modelgit.repo.gates.gate import run_gate

        repo, opened, session = self.repo, self.opened, attempt.session
        weights = {path for path in attempt.tree.stored if path in self.model.weights}
        if not attempt.kept.kept and not self.change.exact:
            raise NothingToDo(f"a density of {density:.3g} keeps nothing of the change", hint="`--density 0.5%`")
        stored = attempt.tree.stored
        manifest, before = attempt.tree.manifest, opened.before
        made = {entry.path: entry.digest for entry in manifest.files}
        # Whoever asks for everything gets it: what drops nothing is an exact patch.
        whole = all(made.get(e.path) == e.digest for e in self.dense.manifest.files if e.path in weights)
        training = NO_TRAINING_STATE
        model_bytes = session.bytes_written
        if opened.outside is None:
            training = record_training(
                repo, session, opened.parent, manifest, only=opened.selected, progress=self.progress
            )
        training_bytes = session.bytes_written - model_bytes
        counts = {(self.model.path, item.name): item.values_changed for path in weights for item in stored[path]}
        changes = compare_manifests(repo, before, manifest, new_store=session, counts=counts)
        parents = () if opened.parent is None else (opened.parent,)
        evaluations = run_gate(
            repo, session, manifest, parents, mode=self.gate,
            counted=nonfinite_counts(stored.values()), progress=self.progress,
        )  # fmt: skip
        result = write_commit(
            repo, session, manifest, before, changes,
            message=self.message,
            parents=parents,
            author=self.author,
            evaluations=evaluations,
            training=training,
            trailers=self._trailers(density, attempt),
            encodings=count_encodings(stored),
            exact=whole,
        )._replace(training_bytes=training_bytes)  # fmt: skip
        rescued = None
        if opened.outside is None and not whole:
            dense = {entry.path: entry.digest for entry in self.dense.manifest.files if entry.path in weights}
            rescued = keep_dense(repo, result.id, dense)
        session.seal()
        rewritten = weights if opened.outside is None and not whole else None
        publish_commit(repo, opened, result, session, rewritten=rewritten, progress=self.progress)
        return Reduced(
            commit=result._replace(branch=opened.view.branch),
            model=self.model.path,
            density=density,
            importance=self.importance,
            seed=self.seed,
            draw=attempt.draw,
            draws=attempt.draws,
            kept=attempt.kept,
            exact=self.change.exact,
            task=None if self.judge is None else self.judge.name,
            fisher=self.fisher_words,
            compared=attempt.compared,
            note=self.note,
            tried=self.tried,
            bytes_patch=attempt.bytes_patch,
            bytes_dense=sum(item.bytes_written for path in weights for item in self.dense.stored.get(path, ())),
            rescued=rescued,
        )

    def _trailers(self, density: float, attempt: _Attempt) -> Mapping[str, str]:
        """The recipe, and what it cost: who has the dense weights can make the patch again, bit for bit."""
        kept = attempt.kept
        trailers = {
            "density": f"{density:.6g}",
            "importance": self.importance,
            "seed": str(self.seed),
            "kept": f"{kept.kept} of {kept.changed} changed values, {kept.elements} in all",
        }
        if attempt.draws:
            trailers["draw"] = f"{attempt.draw} of {self.draws}"
        if self.fisher_words is not None:
            trailers["fisher"] = self.fisher_words
        if kept.predicted_kl is not None:
            trailers["kl-predicted"] = f"{kept.predicted_kl:.4g}"
        if attempt.compared is not None:
            trailers["kl-measured"] = f"{attempt.compared.kl:.4g} on {attempt.compared.examples} inputs"
        return trailers
