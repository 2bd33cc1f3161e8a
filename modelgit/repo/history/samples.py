"""`diff --samples`: what both sides say to the same prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from modelgit.config.schema import TaskSettings
from modelgit.errors import UsageError
from modelgit.models.base import Example, ExampleSet, TaskModel
from modelgit.models.data import read_examples
from modelgit.models.kinds import LANGUAGE_KINDS, task_kind
from modelgit.objects import Manifest
from modelgit.objects.diffs import Sample, SamplePair, SamplesDiff
from modelgit.progress import Progress
from modelgit.repo.contents import find_model, model_files
from modelgit.repo.tasks import encoded, open_task, task_settings
from modelgit.store.base import ObjectStore

if TYPE_CHECKING:
    from modelgit.evals.samples import Answer, Decoding
    from modelgit.repo.repository import Repository

__all__ = ["Prompts", "compare_samples"]

_TASK = "samples"
_TOP = 3
_SHOWN_NUMBERS = 8
_LONGEST = 4096
_ROUNDED = 6
_SPOKEN = LANGUAGE_KINDS | {"question-answering"}


class Prompts(NamedTuple):
    """A file of prompts and how they are answered; the numbers are arguments of `evals.samples.Decoding`.

    `shown` is how messages name the file ("": by its name).
    """

    path: Path
    n_tokens: int = 40
    temperature: float = 0.7
    seed: int = 0
    shown: str = ""


def compare_samples(
    repo: Repository,
    before: Manifest,
    after: Manifest,
    store: ObjectStore,
    prompts: Prompts,
    *,
    task: str | None,
    progress: Progress,
) -> SamplesDiff:
    """Answers of both sides to every prompt of a file, whose records are those of the task's data.

    A record of a causal language model may call its text `prompt`.  One model is held at a time.  Raises UsageError
    when the file, the task or the model do not fit, CheckFailed when outputs are not finite.
    """
    from modelgit.evals.samples import Decoding

    decoding = Decoding(n_tokens=prompts.n_tokens, temperature=prompts.temperature, seed=prompts.seed)
    name, settings = task_settings(repo, task)
    kind = task_kind(settings, model_files(repo, after, settings.model, store=store))
    settings = msgspec.structs.replace(settings, kind=kind)
    generating = kind == "causal-lm"
    if generating:
        settings = _with_prompt_field(settings, prompts)
    examples, fingerprint = read_examples(prompts.path, settings, shown=prompts.shown or prompts.path.name)
    notes: dict[str, None] = {}
    answers = []
    progress.start(_TASK, 2 * len(examples), unit="answers")
    try:
        for manifest, place in ((before, repo.store), (after, store)):
            find_model(manifest, settings.model)
            side = _Side(repo, manifest, place, settings, decoding, notes)
            answer = side.continuations if generating else side.predictions
            found: dict[int, Sample] = {}
            for index, sample in answer(examples, fingerprint):
                progress.check()
                found[index] = sample
                progress.advance(_TASK, 1)
            answers.append(found)
    finally:
        progress.finish(_TASK)
    return SamplesDiff(
        task=name,
        kind="generation" if generating else "prediction",
        pairs=tuple(_pair(example, answers[0][at], answers[1][at]) for at, example in enumerate(examples)),
        n_tokens=decoding.n_tokens if generating else 0,
        temperature=decoding.temperature if generating else 0.0,
        seed=decoding.seed,
        notes=tuple(notes),
    )


def _pair(example: Example, old: Sample, new: Sample) -> SamplePair:
    return SamplePair(id=example.id, prompt=example.text, old=old, new=new, same=old.says_as(new))


class _Prompt(msgspec.Struct):
    prompt: str | None = None


def _with_prompt_field(settings: TaskSettings, prompts: Prompts) -> TaskSettings:
    """The settings, with the field `prompt` for the text where the file has one."""
    if prompts.path.suffix.lower() != ".jsonl":
        return settings
    try:
        with prompts.path.open("rb") as file:
            first = next((line for line in file if line.strip()), b"{}")
        known = msgspec.json.decode(first, type=_Prompt).prompt
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return settings  # whoever reads the file says what is wrong with it
    return settings if known is None else msgspec.structs.replace(settings, text="prompt")


class _Side:
    """One side's model and tokenizer."""

    def __init__(
        self,
        repo: Repository,
        manifest: Manifest,
        store: ObjectStore,
        settings: TaskSettings,
        decoding: Decoding,
        notes: dict[str, None],
    ) -> None:
        self.repo, self.manifest, self.store = repo, manifest, store
        self.settings, self.decoding, self.notes = settings, decoding, notes
        self.files = model_files(repo, manifest, settings.model, store=store)
        self.tokenizer = self._load_tokenizer()

    def _model(self) -> TaskModel:
        model = open_task(self.repo, self.manifest, self.settings, store=self.store)
        model.module.eval()
        return model

    def _encoded(self, settings: TaskSettings, examples: tuple[Example, ...], fingerprint: str) -> ExampleSet:
        return encoded(self.repo, self.manifest, settings, examples, fingerprint, store=self.store)

    def continuations(self, examples: tuple[Example, ...], fingerprint: str) -> Iterator[tuple[int, Sample]]:
        """What a language model writes after each prompt."""
        from modelgit.evals.samples import generate
        from modelgit.models.texts import TextLimits, encode_texts

        limits = TextLimits.read(self.files)
        positions = limits.positions
        longest = max(1, (positions or _LONGEST) - self.decoding.n_tokens)
        settings = msgspec.structs.replace(self.settings, max_length=longest)
        if settings.entry is None:
            # As texts without outputs: a prompt may be a single token, of which no loss could be made.
            inputs: ExampleSet = encode_texts(settings, examples, fingerprint, self.files, limits=limits)
        else:
            inputs = self._encoded(settings, examples, fingerprint)
        stop = _stop_tokens(self.files, self.tokenizer)
        model = self._model()
        for batch in inputs.batches(1):
            (index,) = batch.indices
            example = examples[index]
            made = generate(
                model,
                batch,
                self.decoding,
                name=f"{example.id}\n{example.text}",
                stop=stop,
                positions=positions,
            )
            given = tuple(batch.inputs["input_ids"][0].tolist())
            if len(given) >= longest:
                self.notes[f"prompt `{example.id}` was cut at {longest} tokens"] = None
            yield index, Sample(text=self._text(given, made.ids), tokens=len(made.ids), ended=made.ended)

    def predictions(self, examples: tuple[Example, ...], fingerprint: str) -> Iterator[tuple[int, Sample]]:
        """What the model predicts for each example."""
        from modelgit.evals.samples import predict_one

        inputs = self._encoded(self.settings, examples, fingerprint)
        model = self._model()
        for batch in inputs.batches(1):
            (index,) = batch.indices
            yield index, self._prediction(model, predict_one(model, batch, name=examples[index].id))

    def _prediction(self, model: TaskModel, answer: Answer) -> Sample:
        values = answer.values
        if model.likelihood == "gaussian":
            if values.size > _SHOWN_NUMBERS:
                raise UsageError(
                    f"the outputs of model `{self.settings.model}` are {values.size} numbers, which nobody reads",
                    hint="`mgit diff --fisher` measures how far they move",
                )
            return Sample(text=", ".join(f"{value:.4g}" for value in values.reshape(-1)))
        if len(values) == 1 and self.settings.kind != "masked-lm":
            order = (-values[0]).argsort(kind="stable")[:_TOP]
            return Sample(classes=tuple((self._class(int(at)), round(float(values[0, at]), _ROUNDED)) for at in order))
        tops = [int(at) for at in values.argmax(axis=1)]
        if self.settings.kind == "question-answering":
            return Sample(text=self._decode(answer.tokens[tops[0] : tops[1] + 1]))
        if self.settings.kind == "masked-lm":
            return Sample(text=" ".join(self._decode((token,)) for token in tops))
        return Sample(text=" ".join(map(self._class, tops)))

    def _class(self, index: int) -> str:
        labels = self.settings.labels
        return labels[index] if index < len(labels) else str(index)

    def _load_tokenizer(self) -> Any:
        """The tokenizer whose tokens an answer consists of; None where answers are classes, and where there is none."""
        from modelgit.models.texts import load_tokenizer

        if self.settings.kind not in _SPOKEN:
            return None
        try:
            return load_tokenizer(self.settings, self.files)
        except UsageError:
            self.notes["there is no tokenizer.json beside the weights, so tokens are shown as numbers"] = None
            return None

    def _decode(self, ids: tuple[int, ...]) -> str:
        return " ".join(map(str, ids)) if self.tokenizer is None else str(self.tokenizer.decode(list(ids)))

    def _text(self, given: tuple[int, ...], made: tuple[int, ...]) -> str:
        """The new tokens as text: what they add to the prompt's, because decoders drop a space at the beginning."""
        whole, before = self._decode((*given, *made)), self._decode(given)
        return whole[len(before) :] if whole.startswith(before) else self._decode(made)


class _Ends(msgspec.Struct):
    """The part of generation_config.json and config.json that says where a text ends."""

    eos_token_id: int | tuple[int, ...] | None = None


class _TokenizerEnds(msgspec.Struct):
    eos_token: str | dict[str, object] | None = None


def _stop_tokens(files: Mapping[str, bytes], tokenizer: Any) -> frozenset[int]:
    for name in ("generation_config.json", "config.json"):
        found = _read(files, name, _Ends)
        if found is not None and found.eos_token_id is not None:
            ends = found.eos_token_id
            return frozenset((ends,) if isinstance(ends, int) else ends)
    named = _read(files, "tokenizer_config.json", _TokenizerEnds)
    text = None if named is None else named.eos_token
    content = text.get("content") if isinstance(text, dict) else text
    number = tokenizer.token_to_id(content) if tokenizer is not None and isinstance(content, str) else None
    return frozenset() if number is None else frozenset({int(number)})


def _read(files: Mapping[str, bytes], name: str, kind: type[msgspec.Struct]) -> Any:
    try:
        return msgspec.json.decode(files[name], type=kind) if name in files else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
