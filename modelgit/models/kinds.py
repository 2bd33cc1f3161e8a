"""What the model of a task computes: said by the task, or by the head that config.json names."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from modelgit.config.schema import TaskKind, TaskSettings
from modelgit.errors import UsageError

__all__ = [
    "GAUSSIAN_KINDS",
    "LANGUAGE_KINDS",
    "PER_EXAMPLE_KINDS",
    "UNLABELLED_KINDS",
    "ModelConfig",
    "check_kind",
    "task_kind",
]

LANGUAGE_KINDS: frozenset[TaskKind] = frozenset({"causal-lm", "masked-lm"})
"""Kinds whose classes are the tokens of a vocabulary."""

GAUSSIAN_KINDS: frozenset[TaskKind] = frozenset({"regression", "sentence-embedding"})
"""Kinds whose outputs are numbers: means of Gaussian distributions of unit variance."""

UNLABELLED_KINDS: frozenset[TaskKind] = LANGUAGE_KINDS | GAUSSIAN_KINDS
"""Kinds whose records need no label, and whose label is not read: it is in the text, or is no class."""

PER_EXAMPLE_KINDS: frozenset[TaskKind | None] = frozenset({None, "sequence-classification", "image-classification"})
"""Kinds with one class for each example; None is a task that says nothing, which is one of these."""

_HEADS: dict[str, TaskKind] = {
    "ForSequenceClassification": "sequence-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ForMaskedLM": "masked-lm",
    "ForImageClassification": "image-classification",
}


class ModelConfig(msgspec.Struct):
    """The part of config.json that says what kind of model it is of."""

    model_type: str = ""
    architectures: tuple[str, ...] | None = None

    @classmethod
    def read(cls, files: Mapping[str, bytes]) -> ModelConfig:
        """From `config.json` of `files`; empty where there is none that can be read."""
        try:
            return msgspec.json.decode(files.get("config.json", b"{}"), type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return cls()

    @property
    def kind(self) -> TaskKind | None:
        """What the head that `architectures` names computes; None for a bare encoder and for other heads."""
        for architecture in self.architectures or ():
            for ending, kind in _HEADS.items():
                if architecture.endswith(ending):
                    return kind
        return None


def task_kind(settings: TaskSettings, files: Mapping[str, bytes]) -> TaskKind | None:
    """The `kind` of the settings, or that of the head in `config.json`; None where neither says."""
    return settings.kind or ModelConfig.read(files).kind


def check_kind(settings: TaskSettings, kind: TaskKind) -> None:
    """Refuse a task whose data were read for another kind than its model's head computes.

    Data are read by the task alone.  Where they are more than a text and a label, the task has to say so.
    Raises UsageError.
    """
    if settings.kind is None and kind in ("token-classification", "question-answering", "image-classification"):
        raise UsageError(
            f"config.json of model `{settings.model}` describes a {kind} model, and the task does not say `kind`",
            hint=f'write `kind = "{kind}"` under the task in mgit.toml',
        )
