"""What differs between two manifests, as numbers: the input of every report on a diff."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator

from modelgit.objects.canonical import Record
from modelgit.objects.patches import ChangeKind
from modelgit.objects.tensors import TensorSpec

__all__ = ["BehaviourDiff", "FileDiff", "KeyChange", "ModelDiff", "TensorDiff", "key_changes"]


class TensorDiff(Record, frozen=True, kw_only=True):
    """One tensor that differs.

    `elements` counts those of the new tensor (of the old one, when it was removed); `values_changed` those whose bits
    differ.  `norm_delta` and `norm_old` are Euclidean norms of new - old and of old, `max_abs` and `rms` are of
    new - old over all elements.  They are None where nothing was compared, or where the two do not compare.
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


class BehaviourDiff(Record, frozen=True, kw_only=True):
    """What a change does to the outputs on a task.

    `predicted_kl` is the quadratic estimate from the diagonal Fisher information, `measured_kl` the mean of
    KL(old || new) over `examples`, both in nats.  `reliable` says whether the change is small enough for the estimate.
    `fisher_share` is the share of the Fisher mass that lies on changed values, `top` the tensors with the largest
    shares of the predicted divergence.
    """

    task: str
    predicted_kl: float | None = None
    measured_kl: float | None = None
    examples: int = 0
    reliable: bool = True
    fisher_share: float | None = None
    top: tuple[tuple[str, float], ...] = ()


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
