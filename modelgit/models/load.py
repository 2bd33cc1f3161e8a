"""From the settings of a task to a model that computes and inputs for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from modelgit.config.schema import TaskSettings
from modelgit.errors import UsageError
from modelgit.models.base import ADAPTERS, Adapter, Example, ExampleSet, TaskModel, TensorState
from modelgit.models.kinds import LANGUAGE_KINDS, ModelConfig

__all__ = ["adapter_of", "build_task", "encode_examples"]


def build_task(
    settings: TaskSettings,
    state: TensorState,
    files: Mapping[str, bytes],
    *,
    trusted: bool = False,
    root: Path | None = None,
) -> TaskModel:
    """The model of a task with the weights of `state`, in evaluation mode.

    `files` are the small files of the model's directory by base name.  `trusted` allows `settings.entry` to run, whose
    module is looked up in `root` first.  Raises UsageError that says what to write in mgit.toml.
    """
    if settings.entry is not None:
        from modelgit.models.entry import build_entry

        return build_entry(settings, state, files, trusted=trusted, root=root)
    return adapter_of(settings, files).build(settings, state, files)


def encode_examples(
    settings: TaskSettings,
    examples: tuple[Example, ...],
    fingerprint: str,
    files: Mapping[str, bytes],
    *,
    trusted: bool = False,
    root: Path | None = None,
) -> ExampleSet:
    """The inputs of a task's model for `examples`; arguments as for `build_task`."""
    if settings.entry is not None:
        from modelgit.models.entry import encode_entry

        return encode_entry(settings, examples, fingerprint, files, trusted=trusted, root=root)
    return adapter_of(settings, files).encode(settings, examples, fingerprint, files)


def adapter_of(settings: TaskSettings, files: Mapping[str, bytes]) -> Adapter:
    """The adapter that the settings name, or the one that config.json calls for.

    A bare BERT encoder is the plain torch classifier's, as is one with a language model's head where the task lists
    labels: such a directory holds a classifier's head beside the encoder.  What says its kind is that of transformers.
    """
    if settings.adapter is not None:
        return ADAPTERS.get(settings.adapter)
    config = ModelConfig.read(files)
    no_head = config.kind is None or (config.kind in LANGUAGE_KINDS and bool(settings.labels))
    if config.model_type == "bert" and settings.kind is None and no_head:
        return ADAPTERS.get("bert-classifier")
    if config.model_type:
        return ADAPTERS.get("transformers")
    known = ", ".join(ADAPTERS.names())
    raise UsageError(
        f"the task of model `{settings.model}` says neither `adapter` nor `entry`",
        hint=f'write `adapter = "..."` ({known}) or `entry = "module:function"` under the task in mgit.toml',
    )
