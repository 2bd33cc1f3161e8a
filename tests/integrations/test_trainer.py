"""The Hugging Face Trainer under a mask: frozen, verified, and its checkpoints committed; nothing fails in silence."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import (  # noqa: E402
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from modelgit.errors import CheckFailed, GateRefused, UsageError  # noqa: E402
from modelgit.integrations.transformers import MgitCallback  # noqa: E402
from modelgit.repo import Repository  # noqa: E402
from modelgit.repo.contents import tensors_of  # noqa: E402
from modelgit.repo.patches.mask_verify import verify_mask  # noqa: E402
from modelgit.repo.patches.masks import keep_mask  # noqa: E402

SIZES = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}
TENSOR = "bert.encoder.layer.1.output.dense.weight"


class Lab:
    """A repository with a tiny BERT, a mask, and a Trainer whose checkpoints lie outside of the work tree."""

    def __init__(self, repo: Repository, folder: Path) -> None:
        torch.manual_seed(0)
        self.repo, self.folder = repo, folder
        self.model = BertForSequenceClassification(BertConfig(**SIZES))
        self.model.save_pretrained(repo.worktree / "bot")
        repo.track("bot")
        self.base = repo.commit("base")
        self.tensors = tensors_of(repo, self.base.manifest, self.base.manifest.models[0])
        self.mask: dict[str, np.ndarray | None] = {TENSOR: np.arange(0, 512, 40), "classifier.weight": None}
        self.keep(self.mask)
        draw = torch.Generator().manual_seed(1)
        ids = torch.randint(0, 30, (32, 8), generator=draw)
        self.data = [{"input_ids": row, "labels": int(row[0] % 2)} for row in ids]

    def keep(self, mask: dict[str, np.ndarray | None]) -> str:
        return keep_mask(self.repo, "bot", mask, self.tensors, origin="by hand").id.hex

    def trainer(self, *callbacks: TrainerCallback, **options: object) -> Trainer:
        settings = {
            "output_dir": str(self.folder / "out"),
            "per_device_train_batch_size": 8,
            "num_train_epochs": 2,
            "learning_rate": 1e-2,
            "weight_decay": 0.3,
            "save_steps": 2,
            "logging_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            **options,
        }
        return Trainer(self.model, TrainingArguments(**settings), train_dataset=self.data, callbacks=list(callbacks))

    def changed(self) -> set[str]:
        old = self.repo.load(self.base.id.hex)
        return {
            name
            for name, value in self.model.state_dict().items()
            if not np.array_equal(value.numpy().view(np.uint32), old[name].numpy().view(np.uint32))
        }


@pytest.fixture
def lab(repo: Repository, tmp_path: Path) -> Lab:
    return Lab(repo, tmp_path)


def test_a_run_that_commits_what_it_saves(lab: Lab) -> None:
    journal = lab.folder / "journal"
    callback = MgitCallback("latest", repo=lab.repo, commit_every=2, message="At {step}", journal=journal)
    flags = {name: p.requires_grad for name, p in lab.model.named_parameters()}
    trainer = lab.trainer(callback)
    assert not lab.model.bert.embeddings.word_embeddings.weight.requires_grad
    trainer.train()
    assert lab.changed() == {TENSOR, "classifier.weight"}
    assert [made.commit.message for made in callback.commits] == ["At 4", "At 8"]
    assert {change.name for change in callback.commits[1].patch.tensors} == {TENSOR, "classifier.weight"}
    assert callback.commits[1].patch.masks != ()
    found = verify_mask(
        lab.repo,
        "latest",
        targets=["HEAD~2..HEAD", *(str(lab.folder / "out" / f"checkpoint-{step}") for step in (2, 8))],
        runs=[journal],
    )
    assert (found.commits, found.checkpoints, found.steps, found.violations) == (2, 2, 8, ())
    assert {name: p.requires_grad for name, p in lab.model.named_parameters()} == flags
    state = lab.repo.load("HEAD")
    assert np.array_equal(state[TENSOR].numpy(), lab.model.get_parameter(TENSOR).detach().numpy())


def test_a_run_that_was_stopped_goes_on(lab: Lab) -> None:
    start = copy.deepcopy(lab.model.state_dict())
    lab.trainer(MgitCallback(repo=lab.repo)).train()
    whole = copy.deepcopy(lab.model.state_dict())
    lab.model.load_state_dict(start)
    lab.trainer(MgitCallback(repo=lab.repo)).train(resume_from_checkpoint=str(lab.folder / "out" / "checkpoint-4"))
    assert all(torch.equal(value, whole[name]) for name, value in lab.model.state_dict().items())


def test_gradient_clipping_and_accumulation_in_bf16(lab: Lab) -> None:
    lab.trainer(
        MgitCallback(repo=lab.repo), bf16=True, gradient_accumulation_steps=2, max_grad_norm=0.1, optim="adafactor"
    ).train()
    assert lab.changed() == {TENSOR, "classifier.weight"}


def test_the_mask_says_which_of_two_models_it_is(lab: Lab) -> None:
    """Two paths are tracked, and `as_path` is not given."""
    lab.model.save_pretrained(lab.repo.worktree / "other")
    lab.repo.track("other")
    lab.repo.commit("another model")
    callback = MgitCallback(repo=lab.repo, commit_every=2)
    lab.trainer(callback).train()
    assert len(callback.commits) == 2 and not callback.errors
    assert {change.model for made in callback.commits for change in made.patch.tensors} == {"bot"}


class Meddle(TrainerCallback):
    def __init__(self, change: Callable[[torch.nn.Module], None]) -> None:
        self.change = change

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == 3:
            self.change(kwargs["model"])


def spoil(model: torch.nn.Module) -> None:
    model.bert.pooler.dense.bias.data[0] += 1


def test_a_leak_stops_the_run_before_it_is_committed(lab: Lab) -> None:
    callback = MgitCallback(repo=lab.repo, commit_every=1)
    with pytest.raises(CheckFailed, match=r"`bert\.pooler\.dense\.bias` changed outside the mask before step 4"):
        lab.trainer(callback, Meddle(spoil)).train()
    assert [made.commit.message for made in callback.commits] == ["Step 2"]


def test_a_leak_is_found_at_the_end(lab: Lab) -> None:
    with pytest.raises(CheckFailed, match="the end of the run"):
        lab.trainer(MgitCallback(repo=lab.repo), Meddle(spoil), save_strategy="no").train()
    assert all(p.requires_grad for p in lab.model.parameters())


def test_commits_that_fail_are_not_silent(lab: Lab) -> None:
    """With NaN in the weights the gate refuses."""

    def break_weights(model: torch.nn.Module) -> None:
        model.classifier.weight.data[0, 0] = float("nan")

    callback = MgitCallback(repo=lab.repo, commit_every=1)
    with (
        pytest.warns(RuntimeWarning, match=r"checkpoint-4 was not committed: .* \(hint: `--gate warn`"),
        pytest.raises(CheckFailed, match="3 checkpoints could not be committed") as raised,
    ):
        lab.trainer(callback, Meddle(break_weights)).train()
    assert isinstance(raised.value.__cause__, GateRefused)
    assert raised.value.hint == callback.errors[0].hint is not None
    assert len(callback.commits) == 1 and len(callback.errors) == 3
    with pytest.raises(GateRefused):
        lab.trainer(MgitCallback(repo=lab.repo, commit_every=1, on_error="now"), Meddle(break_weights)).train()


def test_masks_by_hand_and_names_without_a_prefix(lab: Lab) -> None:
    mask = {TENSOR.removeprefix("bert."): [1, 2]}
    lab.trainer(MgitCallback(mask, repo=None), save_strategy="no").train()
    assert lab.changed() == {TENSOR}


def test_a_checkpoint_of_the_body_alone(repo: Repository, tmp_path: Path) -> None:
    lab = Lab(repo, tmp_path)
    BertModel(BertConfig(**SIZES)).save_pretrained(repo.worktree / "body")
    repo.track("body")
    made = repo.commit("body")
    entry = next(model for model in made.manifest.models if model.path == "body")
    mask = {TENSOR.removeprefix("bert."): np.array([3])}
    keep_mask(repo, "body", mask, tensors_of(repo, made.manifest, entry), origin="by hand")
    lab.trainer(MgitCallback(repo=lab.repo), save_strategy="no").train()
    assert lab.changed() == {TENSOR}


def test_without_a_mask_everything_trains(lab: Lab) -> None:
    callback = MgitCallback(None, repo=lab.repo, commit_every=4)
    lab.trainer(callback).train()
    assert len(lab.changed()) > 20
    assert len(callback.commits) == 1


def test_senseless_options_are_refused(lab: Lab) -> None:
    for options, message in (
        ({"on_error": "never"}, "`never`"),
        ({"commit_every": -1}, "every -1"),
        ({"repo": None}, "need a repository"),
    ):
        with pytest.raises(UsageError, match=message):
            MgitCallback(**options)
    with pytest.raises(UsageError, match="no mask `5e0a77c1`"):
        lab.trainer(MgitCallback("5e0a77c1", repo=lab.repo))
