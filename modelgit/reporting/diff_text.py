"""A diff as lines of plain text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from modelgit.objects import TensorSpec
from modelgit.objects.diffs import FileDiff, ModelDiff, TensorDiff
from modelgit.reporting.behaviour_text import behaviour_lines
from modelgit.reporting.heatmap import heat_map
from modelgit.reporting.samples import sample_lines
from modelgit.reporting.wording import amount, change, printable, share, shortened

__all__ = ["diff_lines", "nonfinite_lines", "summary_line"]

_MAX_LISTED = 20
_MAX_VALUE = 60
_SIGNS = {"added": "+", "removed": "-", "respecified": "!"}


def diff_lines(diff: ModelDiff, *, width: int = 100) -> list[str]:
    """The whole diff: per model a summary and a heat map, then files, then what it does to the outputs."""
    lines: list[str] = []
    for model in diff.models:
        lines.append(summary_line(diff, model))
        if model in diff.bases:
            lines.append(f"  adapter of {shortened(printable(diff.bases[model]), _MAX_VALUE)}")
        lines += heat_map(diff.of(model), sizes=diff.sizes.get(model)).render(width)
        lines += nonfinite_lines(diff.of(model))
        lines += _structure(diff.of(model))
    lines += _files(diff.files)
    if diff.behaviour is not None:
        lines += behaviour_lines(diff, diff.behaviour, width=width)
    if diff.samples is not None:
        lines += sample_lines(diff, diff.samples, width=width)
    return lines


def summary_line(diff: ModelDiff, model: str) -> str:
    """`models/bot  0b77f1ac9e21 → worktree      74 tensors, 1.12 M of 361.8 M values (0.31 %)   ‖Δ‖/‖W‖ 0.0041`."""
    count, changed, total = len(diff.of(model)), diff.values_changed(model), diff.elements(model)
    head = f"{printable(model)}  {printable(diff.old)} → {printable(diff.new)}"
    tensors = f"{count:,} tensor{'' if count == 1 else 's'}"
    line = f"{head}      {tensors}, {amount(changed)} of {amount(total)} values ({share(changed, total)})"
    relative = diff.relative_norm(model)
    return line if relative is None else f"{line}   ‖Δ‖/‖W‖ {change(relative)}"


def _structure(tensors: tuple[TensorDiff, ...]) -> Iterator[str]:
    """Tensors that came, went, or changed their shape or type."""
    listed = [tensor for tensor in tensors if tensor.kind in _SIGNS]
    for tensor in listed[:_MAX_LISTED]:
        specs = [_spec(spec) for spec in (tensor.spec_old, tensor.spec_new) if spec is not None]
        yield f"  {_SIGNS[tensor.kind]} {printable(tensor.name)}  {' → '.join(specs)}"
    if len(listed) > _MAX_LISTED:
        yield f"  … and {len(listed) - _MAX_LISTED:,} more tensors added, removed or re-shaped"


def nonfinite_lines(tensors: tuple[TensorDiff, ...]) -> Iterator[str]:
    """`  heads.topic.weight: values that are not finite, and in no norm: 0 → 1`."""
    listed = [tensor for tensor in tensors if tensor.nonfinite_old or tensor.nonfinite_new]
    for tensor in listed[:_MAX_LISTED]:
        counts = f"{tensor.nonfinite_old:,} → {tensor.nonfinite_new:,}"
        yield f"  {printable(tensor.name)}: values that are not finite, and in no norm: {counts}"
    if len(listed) > _MAX_LISTED:
        yield f"  … and {len(listed) - _MAX_LISTED:,} more tensors with values that are not finite"


def _spec(spec: TensorSpec) -> str:
    return f"{printable(spec.dtype)} {list(spec.shape)}"


def _files(files: tuple[FileDiff, ...]) -> Iterator[str]:
    """`files: generation_config.json  temperature 0.7 → 0.2`, one line per key."""
    lead = "files: "
    for file in files:
        path = printable(file.path)
        if not file.keys:
            yield f"{lead}{path}  {file.kind}"
            lead = " " * len("files: ")
            continue
        for index, key in enumerate(file.keys):
            if index == _MAX_LISTED:
                yield f"{' ' * len('files: ')}{path}  and {len(file.keys) - index:,} more keys"
                break
            yield f"{lead}{path}  {printable(key.key)} {_value(key.old)} → {_value(key.new)}"
            lead = " " * len("files: ")


def _value(text: str | None) -> str:
    return "(none)" if text is None else shortened(printable(text), _MAX_VALUE)
