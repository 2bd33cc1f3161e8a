"""What `mgit demo --small` makes: a small BERT with two heads, data for both, limits for a gate, two trained branches.

The sentences are drawn from word lists, so that nothing is downloaded and everything comes out the same every time.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from modelgit.errors import MissingExtraError
from modelgit.progress import SILENT, Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from modelgit.environment import Environment
    from modelgit.repo.repository import Repository

__all__ = [
    "BRANCHES",
    "SETTINGS",
    "check_tokenizers",
    "make_demo",
    "train_base",
    "train_task",
    "write_checkpoint",
    "write_data",
]

BRANCHES = ("topic", "tone")
MODEL = "models/bot"
DENSITY = 0.1
_ROUNDS = 3
_LESSONS = ("tone", "topic", "topic")  # three labels take longer than two
_WIDTH, _INNER, _LAYERS, _HEADS, _POSITIONS = 32, 64, 2, 2, 16
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_SUBJECTS = ("the", "my", "your", "our", "this", "that")
_TOPICS = {
    "refund": ("refund", "invoice", "charge", "payment", "receipt", "price"),
    "delivery": ("parcel", "courier", "shipment", "box", "address", "truck"),
    "account": ("password", "login", "profile", "email", "settings", "username"),
}
_TONES = {
    "kind": ("please", "thanks", "kindly", "wonderful", "grateful", "lovely"),
    "rude": ("now", "useless", "terrible", "awful", "ridiculous", "hate"),
}
_FILLERS = ("is", "was", "where", "when", "about", "with", "again", "still", "today", "it")

SETTINGS = """\
[track]
paths = ["models/bot", "data"]

[task.topic]
model = "models/bot"
adapter = "bert-classifier"
head = "heads.topic"
train = "data/topic.train.jsonl"
test = "data/topic.test.jsonl"
labels = ["refund", "delivery", "account"]

[task.tone]
model = "models/bot"
adapter = "bert-classifier"
head = "heads.tone"
train = "data/tone.train.jsonl"
test = "data/tone.test.jsonl"
labels = ["kind", "rude"]

# The gate: no commit may make the model worse than this against its parent.
[eval.topic]
task = "topic"
accuracy = { max_drop = 0.05 }
negative_flips = { max = 0.05 }

[eval.tone]
task = "tone"
accuracy = { max_drop = 0.05 }
negative_flips = { max = 0.05 }
"""


def make_demo(
    directory: Path,
    *,
    environment: Environment,
    progress: Progress = SILENT,
    tell: Callable[[str], None] = lambda _: None,
) -> Repository:
    """Make the repository in `directory`, which must not exist or be empty, and leave it open on branch main.

    `tell` gets a sentence for each step.  Raises MissingExtraError without the `tokenizers` package.
    """
    check_tokenizers()
    from modelgit.repo.repository import Repository

    directory.mkdir(parents=True, exist_ok=True)
    repo = Repository.init(directory, environment=environment)
    try:
        (directory / "mgit.toml").write_text(SETTINGS, encoding="utf-8")
        repo.forget_settings()
        write_data(directory / "data")
        write_checkpoint(directory / MODEL)
        train_base(repo, progress=progress)
        base = repo.commit("Base model, a first round of training on both tasks", progress=progress)
        tell(f"main   {base.id.short}  a BERT of {_elements(repo):,} values, two tasks, a gate of two suites")
        for task in BRANCHES:
            tell(_branch(repo, task, progress))
        repo.switch("main", progress=progress)
    except BaseException:
        repo.close()
        raise
    return repo


def _branch(repo: Repository, task: str, progress: Progress) -> str:
    """Train `task` on a branch of its own, under a FISH mask."""
    repo.switch("main", progress=progress)
    repo.switch(task, create=True, progress=progress)
    mask = repo.create_mask(density=DENSITY, task=task, progress=progress).mask
    train_task(repo, task, mask=mask.positions(), progress=progress)
    result = repo.commit(
        f"{task}: train {DENSITY:.0%} of the weights under a FISH mask", masks=[mask.id.hex], progress=progress
    )
    changed = sum(change.values_changed or 0 for change in result.patch.tensors)
    return f"{task:<6} {result.id.short}  trained under mask {mask.id.short}: {changed:,} values changed"


def train_base(repo: Repository, *, progress: Progress = SILENT) -> None:
    """A first round of training of the whole model, on both tasks in turn."""
    for number in range(_ROUNDS):
        for task in _LESSONS:
            train_task(repo, task, epochs=1, rate=2e-3, seed=number, progress=progress)


def train_task(
    repo: Repository,
    task: str,
    *,
    epochs: int = 3,
    rate: float = 1e-3,
    seed: int = 0,
    mask: Mapping[str, NDArray[np.int64] | None] | None = None,
    progress: Progress = SILENT,
) -> None:
    """Train the task's model as it lies in the work tree, as a script of the user's would."""
    from safetensors.numpy import load_file, save_file

    from modelgit.integrations.torch_training import state_arrays, train_classifier
    from modelgit.models.load import build_task, encode_examples
    from modelgit.repo.tasks import task_examples, task_settings

    _, settings = task_settings(repo, task)
    folder, root = repo.worktree / MODEL, repo.worktree
    weights = load_file(folder / "model.safetensors")
    files = {name: (folder / name).read_bytes() for name in ("config.json", "tokenizer.json")}
    model = build_task(settings, weights, files, trusted=False, root=root)
    rows, fingerprint = task_examples(repo, settings, settings.train or "")
    inputs = encode_examples(settings, rows, fingerprint, files, trusted=False, root=root)
    train_classifier(model, inputs, epochs=epochs, lr=rate, mask=mask, seed=seed, progress=progress)
    save_file({**weights, **state_arrays(model)}, folder / "model.safetensors", metadata={"format": "pt"})


def write_data(folder: Path, *, train: int = 240, test: int = 120) -> None:
    """Sentences about three topics in two tones, as JSON lines with `text` and `label`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, words in (("topic", _TOPICS), ("tone", _TONES)):
        for part, size, seed in (("train", train, 1), ("test", test, 2)):
            draw = random.Random(f"{name} {seed}")  # noqa: S311 - sentences, not secrets
            lines = []
            for number in range(size):
                label = draw.choice(sorted(words))
                text = _sentence(draw, words[label], _TONES if name == "topic" else _TOPICS)
                lines.append(json.dumps({"id": f"{part}-{number}", "text": text, "label": label}))
            (folder / f"{name}.{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _sentence(draw: random.Random, telling: tuple[str, ...], others: Mapping[str, tuple[str, ...]]) -> str:
    """Words of which one or two say what the label is, and the rest says nothing about it."""
    words = [draw.choice(telling) for _ in range(draw.choice((1, 1, 2)))]
    words += [draw.choice(draw.choice(list(others.values())))]
    words += [draw.choice(_FILLERS) for _ in range(draw.randint(2, 5))]
    draw.shuffle(words)
    return " ".join([draw.choice(_SUBJECTS), *words])


def write_checkpoint(folder: Path) -> None:
    """An untrained BERT in the layout of a Hugging Face checkpoint: weights, config.json, tokenizer.json."""
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _vocabulary()
    draw = np.random.default_rng(0)
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, shape in _shapes(len(vocabulary)).items():
        if name.endswith("LayerNorm.weight"):
            tensors[name] = np.ones(shape, np.float32)
        elif name.endswith("bias"):
            tensors[name] = np.zeros(shape, np.float32)
        else:
            tensors[name] = draw.normal(0, 0.1, shape).astype(np.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": len(vocabulary),
        "hidden_size": _WIDTH,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "intermediate_size": _INNER,
        "max_position_embeddings": _POSITIONS,
        "type_vocab_size": 2,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "generation_config.json").write_text('{\n  "temperature": 0.7\n}\n', encoding="utf-8")
    (folder / "tokenizer.json").write_text(_tokenizer(vocabulary), encoding="utf-8")


def _vocabulary() -> list[str]:
    lists = (*_TOPICS.values(), *_TONES.values(), _SUBJECTS, _FILLERS)
    return [*_SPECIAL, *sorted({word for words in lists for word in words})]


def _shapes(words: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (words, _WIDTH),
        "embeddings.position_embeddings.weight": (_POSITIONS, _WIDTH),
        "embeddings.token_type_embeddings.weight": (2, _WIDTH),
        "embeddings.LayerNorm.weight": (_WIDTH,),
        "embeddings.LayerNorm.bias": (_WIDTH,),
    }
    for layer in range(_LAYERS):
        at = f"encoder.layer.{layer}."
        linear = {f"attention.self.{part}": (_WIDTH, _WIDTH) for part in ("query", "key", "value")}
        linear |= {"attention.output.dense": (_WIDTH, _WIDTH)}
        linear |= {"intermediate.dense": (_INNER, _WIDTH), "output.dense": (_WIDTH, _INNER)}
        for part, shape in linear.items():
            shapes |= {f"{at}{part}.weight": shape, f"{at}{part}.bias": shape[:1]}
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{at}{part}.weight": (_WIDTH,), f"{at}{part}.bias": (_WIDTH,)}
    for head, labels in (("topic", _TOPICS), ("tone", _TONES)):
        shapes |= {f"heads.{head}.weight": (len(labels), _WIDTH), f"heads.{head}.bias": (len(labels),)}
    return shapes


def _tokenizer(vocabulary: list[str]) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    positions = {word: at for at, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(positions, unk_token="[UNK]"))  # noqa: S106  (a token of text)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    text: str = tokenizer.to_str(pretty=True)
    return text + "\n"


def check_tokenizers() -> None:
    """Raise MissingExtraError without the `tokenizers` package, before any work is done."""
    try:
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "the demo needs the `tokenizers` package", hint="`pip install 'modelgit[demo]'`"
        ) from error


def _elements(repo: Repository) -> int:
    return sum(entry.spec.elements for entry in repo.load(model=MODEL).entries.values())
