"""What a diff does to the outputs on a task: divergence by tensor, Fisher mass, flips."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from modelgit.errors import MgitError, UsageError
from modelgit.models.kinds import task_kind
from modelgit.objects import FisherEstimate, Manifest
from modelgit.objects.diffs import BehaviourDiff, OutputFlip, TensorBehaviour
from modelgit.progress import SILENT, Progress
from modelgit.repo.contents import find_model, model_files
from modelgit.repo.load import model_state
from modelgit.repo.tasks import encoded, open_task, task_examples, task_settings
from modelgit.store.base import ObjectStore

if TYPE_CHECKING:
    from modelgit.fisher.behaviour import Behaviour
    from modelgit.fisher.kl import Flip, Mass
    from modelgit.models.base import Example
    from modelgit.repo.repository import Repository

__all__ = ["KnownFisher", "compare_behaviour", "known_fisher"]

_MAX_TEXT = 160
# What decides how data become inputs.
_READING = frozenset({"tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"})


class KnownFisher(NamedTuple):
    """The Fisher diagonal of the old side, and in `words` where it comes from, or why there is none."""

    estimate: FisherEstimate | None
    words: str


def known_fisher(
    repo: Repository, revision: str, task: str | None, *, examples: int, progress: Progress = SILENT
) -> KnownFisher:
    """The estimate of the old side, made and kept if there is none.  Raises UsageError when there is no such task."""
    from modelgit.repo.patches.fisher import estimate_fisher

    name, _ = task_settings(repo, task)
    try:
        stored = estimate_fisher(repo, task=name, revision=revision, examples=examples, progress=progress)
    except MgitError as error:
        return KnownFisher(None, f"no Fisher estimate: {error.message}")
    return KnownFisher(stored.estimate, stored.words)


def compare_behaviour(
    repo: Repository,
    before: Manifest,
    after: Manifest,
    store: ObjectStore,
    fisher: KnownFisher,
    *,
    task: str | None = None,
    examples: int = 512,
    progress: Progress = SILENT,
) -> BehaviourDiff:
    """Run both sides on the first `examples` of the task's test data (its training data, with a note, if it has none).

    Held: two models at most, of which tensors that are equal are held once.  Raises UsageError that says what to write
    in mgit.toml when model or data cannot be found, CheckFailed when outputs are not finite.
    """
    name, settings = task_settings(repo, task)
    data = settings.test or settings.train
    if data is None:
        raise UsageError(f"task `{name}` has no data", hint=f'write `test = "data/test.jsonl"` under [task.{name}]')
    find_model(before, settings.model)
    notes = []
    if settings.test is None:
        notes.append(
            f"measured on training data, because task `{name}` has no `test`: on what a model was fitted to, "
            "divergences come out too small (2 to 12 times where it is over-fitted)"
        )
    files, old_files = (
        model_files(repo, side, settings.model, store=place) for side, place in ((after, store), (before, repo.store))
    )
    names = _READING | {PurePosixPath(settings.tokenizer or "").name}
    reading = sorted(name for name in names if files.get(name) != old_files.get(name))
    if reading:
        notes.append(f"{reading[0]} differs: both sides were given the data as the new one reads them")
    from modelgit.fisher.behaviour import behaviour

    rows, fingerprint = task_examples(repo, settings, data)
    # The pass over the diagonal comes first: it reads tensors one at a time, and the models are not there yet.
    mass = _mass(repo, before, after, store, settings.model, fisher, progress)
    inputs = encoded(repo, after, settings, rows, fingerprint, store=store)
    found = behaviour(
        open_task(repo, before, settings),
        open_task(repo, after, settings, store=store),
        inputs,
        limit=examples,
        progress=progress,
    )
    kind = task_kind(settings, files) or ""
    return _record(
        name,
        settings.model,
        data,
        kind,
        settings.labels,
        inputs.examples,
        found,
        mass,
        (*notes, *found.notes),
        fisher.words,
        same_data=fisher.estimate is not None and fisher.estimate.data == fingerprint,
    )


def _mass(
    repo: Repository,
    before: Manifest,
    after: Manifest,
    store: ObjectStore,
    model: str,
    fisher: KnownFisher,
    progress: Progress,
) -> Mass | None:
    if fisher.estimate is None:
        return None
    from modelgit.fisher.kl import fisher_mass
    from modelgit.repo.patches.fisher import diagonal_of

    progress.check()
    old = model_state(repo, before, find_model(before, model))
    new = model_state(repo, after, find_model(after, model), store=store)
    # Views of one storage share its id, so that one of them may be equal: then no value of it differs.
    changed = [name for name, entry in old.entries.items() if new.entries.get(name) != entry]
    return fisher_mass(diagonal_of(repo, fisher.estimate), old.arrays(), new.arrays(), changed)


def _record(
    task: str,
    model: str,
    data: str,
    kind: str,
    labels: tuple[str, ...],
    examples: tuple[Example, ...],
    found: Behaviour,
    mass: Mass | None,
    notes: tuple[str, ...],
    fisher_words: str,
    *,
    same_data: bool,
) -> BehaviourDiff:
    from modelgit.fisher.behaviour import diagonal_note

    measured, form = found.measured, found.directional
    diagonal = None if mass is None or form is None else mass.divergence
    why = None if diagonal is None or form is None else diagonal_note(diagonal, form.kl, same_data=same_data)
    categorical = found.likelihood == "categorical"
    return BehaviourDiff(
        task=task,
        model=model,
        data=data,
        kind=kind,
        likelihood=found.likelihood,
        examples=found.examples,
        outputs=measured.outputs if measured else 0,
        measured_kl=measured.kl if measured else None,
        directional_kl=form.kl if form else None,
        method=form.method if form else "",
        reliable=found.reliable,
        diagonal_kl=diagonal if why is None else None,
        fisher_share=mass.share if mass else None,
        agreement=measured.agreement if measured and categorical else None,
        labelled=measured.labelled if measured else 0,
        old_correct=measured.old_correct if measured else 0,
        new_correct=measured.new_correct if measured else 0,
        negative_flips=measured.negative_flips if measured else 0,
        positive_flips=measured.positive_flips if measured else 0,
        old_loss=measured.old_loss if measured else None,
        new_loss=measured.new_loss if measured else None,
        flipped=measured.flipped if measured else 0,
        flips=tuple(_flip(flip, examples, labels) for flip in measured.flips) if measured else (),
        tensors=_tensors(form.by_tensor if form else None, mass.by_tensor if mass else {}),
        notes=tuple(note for note in (*notes, why, fisher_words) if note),
    )


def _tensors(parts: Mapping[str, float] | None, shares: Mapping[str, float]) -> tuple[TensorBehaviour, ...]:
    """The largest parts of the divergence first, whatever their sign."""
    known = parts or {}
    found = [
        TensorBehaviour(name=name, divergence=known.get(name), fisher_share=shares.get(name))
        for name in {**known, **shares}
    ]
    return tuple(sorted(found, key=lambda item: (-abs(item.divergence or 0.0), -(item.fisher_share or 0.0), item.name)))


def _flip(flip: Flip, examples: tuple[Example, ...], labels: tuple[str, ...]) -> OutputFlip:
    example = examples[flip.index]
    single = flip.old >= 0
    text = " ".join(example.text.split())
    return OutputFlip(
        id=example.id,
        text=text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…",
        kl=flip.kl,
        changed=flip.changed,
        outputs=flip.outputs,
        old=_class(flip.old, labels) if single else "",
        new=_class(flip.new, labels) if single else "",
        old_margin=flip.old_margin if single else None,
        new_margin=flip.new_margin if single else None,
        label=_class(example.label, labels) if single and example.label >= 0 else "",
    )


def _class(index: int, labels: tuple[str, ...]) -> str:
    return labels[index] if index < len(labels) else str(index)
