"""What differs between two manifests, as numbers: the input of every report on a diff."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator

from modelgit.objects.canonical import Record
from modelgit.objects.patches import ChangeKind
from modelgit.objects.tensors import TensorSpec

__all__ = [
    "BehaviourDiff",
    "FileDiff",
    "KeyChange",
    "ModelDiff",
    "OutputFlip",
    "Sample",
    "SamplePair",
    "SamplesDiff",
    "TensorBehaviour",
    "TensorDiff",
    "key_changes",
]


class TensorDiff(Record, frozen=True, kw_only=True):
    """One tensor that differs.

    `elements` counts those of the new tensor (of the old one, when it was removed); `values_changed` those whose bits
    differ.  `norm_delta` and `norm_old` are Euclidean norms of new - old and of old, `max_abs` and `rms` are of
    new - old over all elements; values that are not finite on one side count in `nonfinite_old` and `nonfinite_new` and
    in no norm.  They are None where nothing was compared, or where the two do not compare.
    """

    model: str
    name: str
    kind: ChangeKind
    spec_old: TensorSpec | None
    spec_new: TensorSpec | None
    elements: int
    values_changed: int | None = None
    norm_delta: float | None = None
    norm_old: float | None = None
    max_abs: float | None = None
    rms: float | None = None
    nonfinite_old: int = 0
    nonfinite_new: int = 0

    @property
    def relative_norm(self) -> float | None:
        """‖new - old‖ / ‖old‖; infinite when only zeros were there; None when unknown."""
        return relative_norm([self])


class KeyChange(Record, frozen=True, kw_only=True):
    """One key of a JSON file, dotted, with both values as JSON text; None on the side that lacks it."""

    key: str
    old: str | None
    new: str | None


class FileDiff(Record, frozen=True, kw_only=True):
    """One file without tensors; `keys` where both sides are JSON objects."""

    path: str
    kind: ChangeKind
    keys: tuple[KeyChange, ...] = ()


class TensorBehaviour(Record, frozen=True, kw_only=True):
    """What one tensor's change carries.

    `divergence` is its part of the directional form, in nats per example; the parts add up to it, and one that undoes
    another's is negative.  `fisher_share` is the share of the whole Fisher mass that lies on its changed values.
    """

    name: str
    divergence: float | None = None
    fisher_share: float | None = None


class OutputFlip(Record, frozen=True, kw_only=True):
    """An example whose prediction changed: `old` and `new` are classes, with their lead over the second in probability.

    Where an example has several outputs (tokens), `changed` of `outputs` have another top class, and the classes are
    empty.  `label` is the right class, if known; `text` is cut; `kl` is in nats over all outputs.
    """

    id: str
    text: str
    kl: float
    changed: int
    outputs: int
    old: str = ""
    new: str = ""
    old_margin: float | None = None
    new_margin: float | None = None
    label: str = ""


class BehaviourDiff(Record, frozen=True, kw_only=True):
    """What a change does to the outputs of a task's `model` on its `data`; `kind` is what the
    task computes ("causal-lm"), if known.

    Divergences are KL(old || new) in nats per example, over `examples` with `outputs` outputs (tokens) in all.
    `measured_kl` is what a forward pass of both sides gives, `directional_kl` the quadratic form 1/2 d^T F d at the
    old weights with all cross terms, by `method`; `reliable` says whether the form holds for a change of this size.
    `diagonal_kl` (1/2 sum F_i d_i^2) is there only where it agrees with the form within a factor of two.
    `fisher_share` is the share of the Fisher mass that lies on changed values.  `agreement` is the share of outputs
    with the same top class; `flipped` counts the examples with a changed one, `flips` lists those that diverge most.
    Of the `labelled` outputs `old_correct` and `new_correct` are right, `negative_flips` became wrong and
    `positive_flips` right; losses are mean negative log-likelihoods of the labels in nats.  `notes` say what limits
    the numbers.
    """

    task: str
    model: str = ""
    data: str = ""
    kind: str = ""
    likelihood: str
    examples: int = 0
    outputs: int = 0
    measured_kl: float | None = None
    directional_kl: float | None = None
    method: str = ""
    reliable: bool = True
    diagonal_kl: float | None = None
    fisher_share: float | None = None
    agreement: float | None = None
    labelled: int = 0
    old_correct: int = 0
    new_correct: int = 0
    negative_flips: int = 0
    positive_flips: int = 0
    old_loss: float | None = None
    new_loss: float | None = None
    flipped: int = 0
    flips: tuple[OutputFlip, ...] = ()
    tensors: tuple[TensorBehaviour, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def sequential(self) -> bool:
        """Whether examples have several outputs, tokens as a rule."""
        return self.outputs > self.examples

    def per_output(self, kl: float) -> float:
        """A divergence per example as one per output."""
        return kl * self.examples / max(1, self.outputs)


class Sample(Record, frozen=True, kw_only=True):
    """One side's answer to a prompt: what a language model wrote, or the most likely classes.

    `tokens` counts those that were generated, `ended` says whether the model stopped by itself.  `classes` are names
    and probabilities, the most likely first.
    """

    text: str = ""
    tokens: int = 0
    ended: bool = False
    classes: tuple[tuple[str, float], ...] = ()

    def says_as(self, other: Sample) -> bool:
        """Whether another answer has the same text, or the same most likely class."""
        if self.classes and other.classes:
            return self.classes[0][0] == other.classes[0][0]
        return self == other


class SamplePair(Record, frozen=True, kw_only=True):
    """A prompt and both answers; `same` where the texts, or the most likely classes, are the same."""

    id: str
    prompt: str
    old: Sample
    new: Sample
    same: bool


class SamplesDiff(Record, frozen=True, kw_only=True):
    """Answers of both sides to the same prompts: "generation" with one seed for both, or "prediction"."""

    task: str
    kind: str
    pairs: tuple[SamplePair, ...] = ()
    n_tokens: int = 0
    temperature: float
    seed: int = 0
    notes: tuple[str, ...] = ()


class ModelDiff(Record, frozen=True, kw_only=True):
    """Everything that differs between `old` and `new` (labels for people: a short id, "worktree").

    `tensors` and `files` hold what differs alone; `sizes` counts the elements of every tensor of the new side, by
    model and name, so that shares can be given of the whole.  `bases` names the model that each adapter belongs to.
    """

    old: str
    new: str
    tensors: tuple[TensorDiff, ...] = ()
    files: tuple[FileDiff, ...] = ()
    behaviour: BehaviourDiff | None = None
    samples: SamplesDiff | None = None
    sizes: dict[str, dict[str, int]] = {}
    bases: dict[str, str] = {}

    @property
    def models(self) -> tuple[str, ...]:
        """Paths of the models in which a tensor differs, sorted."""
        return tuple(sorted({tensor.model for tensor in self.tensors}))

    def of(self, model: str) -> tuple[TensorDiff, ...]:
        """The tensors of `model` that differ."""
        return tuple(tensor for tensor in self.tensors if tensor.model == model)

    def elements(self, model: str | None = None) -> int:
        """Elements of all tensors of `model`, or of all models, changed or not."""
        models = [model] if model is not None else sorted({*self.sizes, *self.models})
        return sum(
            sum(self.sizes[path].values()) if path in self.sizes else sum(tensor.elements for tensor in self.of(path))
            for path in models
        )

    def values_changed(self, model: str | None = None) -> int:
        """Elements that differ; all of a tensor that was added or does not compare, none of a removed one."""
        chosen = self.tensors if model is None else self.of(model)
        return sum(_changed(tensor) for tensor in chosen)

    def relative_norm(self, model: str | None = None) -> float | None:
        """‖new - old‖ / ‖old‖ over the tensors that were compared; None when there are none."""
        return relative_norm(self.tensors if model is None else self.of(model))

    def __bool__(self) -> bool:
        return bool(self.tensors or self.files)


def relative_norm(tensors: Iterable[TensorDiff]) -> float | None:
    """‖new - old‖ / ‖old‖ over several tensors, as if they were one vector."""
    pairs = [(t.norm_delta, t.norm_old) for t in tensors if t.norm_delta is not None and t.norm_old is not None]
    if not pairs:
        return None
    delta, old = math.hypot(*(d for d, _ in pairs)), math.hypot(*(o for _, o in pairs))
    if old == 0:
        return math.inf if delta else 0.0
    return delta / old


def key_changes(old: bytes, new: bytes) -> tuple[KeyChange, ...]:
    """The keys in which two JSON objects differ, in the order of the keys; nothing unless both are JSON objects."""
    try:
        before, after = json.loads(old), json.loads(new)
        if not isinstance(before, dict) or not isinstance(after, dict):
            return ()
        return tuple(_walk("", before, after))
    except (ValueError, RecursionError):
        return ()


def _walk(prefix: str, before: dict[str, object], after: dict[str, object]) -> Iterator[KeyChange]:
    for key in sorted({*before, *after}):
        name = f"{prefix}{key}"
        old, new = before.get(key), after.get(key)
        if key in before and key in after and isinstance(old, dict) and isinstance(new, dict):
            yield from _walk(f"{name}.", old, new)
            continue
        texts = [_text(side[key]) if key in side else None for side in (before, after)]
        if texts[0] != texts[1]:
            yield KeyChange(key=name, old=texts[0], new=texts[1])


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _changed(tensor: TensorDiff) -> int:
    if tensor.values_changed is not None:
        return tensor.values_changed
    return 0 if tensor.kind == "removed" else tensor.elements
