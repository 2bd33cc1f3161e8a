"""`commit --density`: what comes back is what was measured and gated, and the dense weights are never lost."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping

import numpy as np
import pytest

pytest.importorskip("torch")
tokenizers = pytest.importorskip("tokenizers")

from modelgit.errors import CheckFailed, GateRefused, MgitError, NothingToDo, RepositoryError, UsageError  # noqa: E402
from modelgit.fisher.changes import IMPORTANCES  # noqa: E402
from modelgit.repo import Repository  # noqa: E402
from modelgit.repo.contents import file_bytes  # noqa: E402
from modelgit.repo.patches.density import commit_patch  # noqa: E402
from modelgit.repo.tracking.switch import restore  # noqa: E402
from modelgit.repo.tracking.undo import redo, undo  # noqa: E402
from modelgit.repo.upkeep.fsck import fsck  # noqa: E402
from modelgit.repo.upkeep.gc import collect, tidy  # noqa: E402

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "where", "is", "who", "was", "the", "king", "city", "?", "old", "new")
WIDTH, INNER, LAYERS, CLASSES = 16, 32, 2, 2
WEIGHTS = "models/bot/model.safetensors"
CONFIG = """
[track]
paths = ["models/bot", "data"]

[task.questions]
model = "models/bot"
adapter = "bert-classifier"
test = "data/test.jsonl"
labels = ["a", "b"]
"""


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(WORDS), WIDTH),
        "embeddings.position_embeddings.weight": (12, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        "embeddings.LayerNorm.weight": (WIDTH,),
        "embeddings.LayerNorm.bias": (WIDTH,),
        "embeddings.position_ids": (12,),
        "classifier.weight": (CLASSES, WIDTH),
        "classifier.bias": (CLASSES,),
    }
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}."
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            found |= {f"{at}{part}.weight": (WIDTH, WIDTH), f"{at}{part}.bias": (WIDTH,)}
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            found |= {f"{at}{part}.weight": (WIDTH,), f"{at}{part}.bias": (WIDTH,)}
        found |= {f"{at}intermediate.dense.weight": (INNER, WIDTH), f"{at}intermediate.dense.bias": (INNER,)}
        found |= {f"{at}output.dense.weight": (WIDTH, INNER), f"{at}output.dense.bias": (WIDTH,)}
    return found


def weights(seed: int, *, without: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    state = {name: (0.4 * random.standard_normal(shape)).astype("<f4") for name, shape in shapes().items()}
    state["embeddings.position_ids"] = np.arange(12, dtype="<i8") + seed
    tune = np.random.default_rng(seed)
    if seed:
        for array in state.values():
            if array.dtype.kind == "f":
                array += (0.03 * tune.standard_normal(array.shape)).astype("<f4")
    return {name: array for name, array in state.items() if name not in without}


@pytest.fixture
def write(repo: Repository, files) -> Callable[..., None]:
    """Writes the weights of a seed into the work tree, or elsewhere."""

    def put(seed: int, *, folder: str = "models/bot", without: tuple[str, ...] = (), **more: np.ndarray) -> None:
        place = repo.worktree / folder
        place.mkdir(parents=True, exist_ok=True)
        kinds = {"f": "F32", "i": "I64"}
        arrays: Mapping[str, np.ndarray] = {**weights(seed, without=without), **more}
        table = {name: (kinds[array.dtype.kind], array.shape, array.tobytes()) for name, array in arrays.items()}
        (place / "model.safetensors").write_bytes(files.safetensors(table, metadata={"format": "pt"}))

    return put


@pytest.fixture
def bot(repo: Repository, write: Callable[..., None]) -> Repository:
    """A committed BERT of some thousand weights with a task, and a dense fine-tune in the work tree."""
    write(0)
    sizes = {
        "model_type": "bert", "vocab_size": len(WORDS), "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "intermediate_size": INNER, "max_position_embeddings": 12,
    }  # fmt: skip
    (repo.worktree / "models/bot/config.json").write_text(json.dumps(sizes))
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    (repo.worktree / "models/bot/tokenizer.json").write_text(tokenizer.to_str())
    random = np.random.default_rng(1)
    rows = [{"text": " ".join(random.choice(WORDS[4:], 4)), "label": "ab"[int(random.integers(2))]} for _ in range(60)]
    (repo.worktree / "data").mkdir()
    (repo.worktree / "data/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (repo.worktree / "mgit.toml").write_text(CONFIG)
    repo.forget_settings()
    repo.commit("base")
    write(1)
    return repo


def dense_of(repo: Repository) -> bytes:
    return (repo.worktree / WEIGHTS).read_bytes()


def tensors_of(repo: Repository, revision: str = "HEAD") -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in repo.load(revision, model="models/bot").items()}


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_what_is_recorded_is_the_patch_and_the_work_tree_holds_it(bot: Repository, importance: str) -> None:
    dense, base, tuned = dense_of(bot), weights(0), weights(1)
    made = commit_patch(bot, "sparse", density=0.1, importance=importance, seed=3)
    assert bot.status().is_clean
    assert fsck(bot).is_sound
    patch = bot.patch_of(made.commit.id)
    assert not patch.exact
    assert bot.head() == made.commit.id
    got = tensors_of(bot)
    floats = [name for name in got if got[name].dtype.kind == "f"]
    total = sum(got[name].size for name in floats)
    changed = sum(np.count_nonzero(got[name] != base[name]) for name in floats)
    assert changed == made.kept.kept
    assert made.kept.elements == total
    assert abs(changed - 0.1 * total) < 5 * np.sqrt(0.1 * total)
    assert np.array_equal(got["classifier.weight"], tuned["classifier.weight"])
    assert np.array_equal(got["embeddings.position_ids"], tuned["embeddings.position_ids"])
    assert made.exact == ("embeddings.position_ids",)
    assert made.compared is not None
    assert made.compared.kl > 0
    assert made.compared.examples == 30
    assert made.compared.labelled == 30
    assert (made.kept.predicted_kl is None) == importance.startswith("top-k")
    assert 0 < made.bytes_patch < made.bytes_dense
    trailers = bot.commit_at(made.commit.id).trailers
    assert trailers["importance"] == importance
    assert trailers["seed"] == "3"
    assert trailers["density"] == "0.1"
    assert trailers["kl-measured"].startswith(f"{made.compared.kl:.4g}")
    assert made.rescued is not None
    assert (made.rescued / WEIGHTS).read_bytes() == dense


def test_a_patch_that_keeps_everything_is_exact(bot: Repository) -> None:
    dense = dense_of(bot)
    made = commit_patch(bot, "everything", density=1.0)
    assert bot.patch_of(made.commit.id).exact and made.rescued is None
    assert made.kept.kept == made.kept.changed and dense_of(bot) == dense and bot.status().is_clean
    undo(bot)
    assert dense_of(bot) == dense


def test_undo_brings_the_dense_weights_back_bit_for_bit(bot: Repository) -> None:
    dense, before = dense_of(bot), bot.head()
    made = commit_patch(bot, "sparse", density=0.1)
    patched = dense_of(bot)
    assert patched != dense
    undo(bot)
    assert dense_of(bot) == dense
    assert bot.head() == before
    again = commit_patch(bot, "sparse", density=0.1)
    assert again.commit.manifest == made.commit.manifest  # the recipe is all that matters
    assert dense_of(bot) == patched
    undo(bot)
    restore(bot, ["."])
    redo(bot)
    assert dense_of(bot) == patched
    assert bot.status().is_clean


def test_undo_does_not_overwrite_what_came_after(bot: Repository, write: Callable[..., None]) -> None:
    commit_patch(bot, "sparse", density=0.1)
    write(2)
    mine = dense_of(bot)
    with pytest.raises(RepositoryError, match="would overwrite"):
        undo(bot)
    assert dense_of(bot) == mine


def test_an_expired_rescue_leaves_an_ordinary_undo(bot: Repository) -> None:
    made = commit_patch(bot, "sparse", density=0.1)
    assert made.rescued is not None
    tidy(bot)
    assert made.rescued.is_dir()
    old = time.time() - 8 * 86400
    os.utime(made.rescued, (old, old))
    tidy(bot)
    assert not made.rescued.exists()
    undo(bot)
    assert dense_of(bot) == bot_bytes(bot)
    assert bot.status().is_clean


def bot_bytes(repo: Repository) -> bytes:
    entry = repo.manifest_of(repo.head()).file(WEIGHTS)
    assert entry is not None
    return file_bytes(repo, entry.digest)


def test_the_patch_depends_on_the_seed_and_nothing_else(bot: Repository, write: Callable[..., None]) -> None:
    first = commit_patch(bot, "one", density=0.05, seed=1).commit
    undo(bot)
    bot.commit("in between", only=["data"], allow_empty=True)
    second = commit_patch(bot, "two", density=0.05, seed=1).commit
    assert first.manifest == second.manifest
    undo(bot)
    assert commit_patch(bot, "three", density=0.05, seed=2).commit.manifest != first.manifest


def test_the_best_of_several_draws_is_taken(bot: Repository, write: Callable[..., None]) -> None:
    singles = []
    for seed in (3, 4, 5):
        singles.append(commit_patch(bot, "one", density=0.05, importance="magnitude", seed=seed))
        undo(bot)
    made = commit_patch(bot, "three", density=0.05, importance="magnitude", seed=3, draws=3)
    assert len(made.draws) == 3
    assert made.draw == 1 + int(np.argmin(made.draws))
    assert made.commit.manifest == singles[made.draw - 1].commit.manifest
    assert made.compared == singles[made.draw - 1].compared
    assert len({single.commit.manifest for single in singles}) == 3
    assert bot.commit_at(made.commit.id).trailers["draw"] == f"{made.draw} of 3"
    assert all(single.draws == () for single in singles)


def test_draws_that_break_the_model_are_not_taken(bot: Repository, write: Callable[..., None]) -> None:
    """Values near the end of float32: divided by the probability of being kept they are infinite."""
    name = f"encoder.layer.{LAYERS - 1}.output.LayerNorm.weight"
    write(1, **{name: np.full(WIDTH, 2e37, "<f4")})
    dense = dense_of(bot)
    made = commit_patch(bot, "eight", density=0.1, importance="uniform", draws=8)
    known = [cost for cost in made.draws if cost is not None]
    assert 0 < len(known) < len(made.draws) == 8
    assert made.draws[made.draw - 1] == min(known)
    assert made.compared is not None
    undo(bot)
    broken = made.draws.index(None)  # the draw of this number alone
    with pytest.raises(CheckFailed, match="breaks the model") as caught:
        commit_patch(bot, "one", density=0.1, importance="uniform", seed=broken)
    assert "--draws" in (caught.value.hint or "")
    assert dense_of(bot) == dense
    assert bot.commit_at(bot.head()).subject == "base"
    found = commit_patch(bot, "least", max_kl=1e-9, importance="uniform")
    assert None in {tried.measured_kl for tried in found.tried}  # the search goes on beyond such a patch
    assert found.compared is not None
    assert found.compared.kl <= 1e-9


def test_several_draws_need_something_to_compare_them_by(bot: Repository) -> None:
    with pytest.raises(UsageError, match="draws nothing"):
        commit_patch(bot, "top", density=0.1, importance="top-k", draws=2)
    (bot.worktree / "mgit.toml").write_text('[track]\npaths = ["models/bot", "data"]\n')
    bot.forget_settings()
    with pytest.raises(UsageError, match="cannot be compared"):
        commit_patch(bot, "blind", density=0.1, importance="magnitude", draws=2)


def test_the_smallest_density_below_a_divergence_is_found(bot: Repository) -> None:
    dense = dense_of(bot)
    made = commit_patch(bot, "sparse", max_kl=2e-3)
    assert made.compared is not None
    assert made.compared.kl <= 2e-3
    assert made.tried
    assert all(tried.measured_kl > 2e-3 for tried in made.tried if tried.density < made.density)
    undo(bot)
    assert dense_of(bot) == dense
    smaller = max((tried.density for tried in made.tried if tried.density < made.density), default=None)
    assert smaller is None or made.density / smaller < 1.6
    by_size = commit_patch(bot, "sparse", max_kl=2e-3, importance="top-k")
    assert by_size.compared is not None
    assert by_size.compared.kl <= 2e-3


def test_without_data_magnitude_works_and_fisher_says_what_is_missing(bot: Repository) -> None:
    config = bot.worktree / "mgit.toml"
    config.write_text(CONFIG.replace('test = "data/test.jsonl"\n', ""))
    bot.forget_settings()
    dense = dense_of(bot)
    with pytest.raises(UsageError, match="names no data") as refused:
        commit_patch(bot, "sparse", density=0.1)
    assert "--importance magnitude" in (refused.value.hint or "")
    with pytest.raises(UsageError, match="cannot be measured"):
        commit_patch(bot, "sparse", max_kl=0.1, importance="magnitude")
    assert dense_of(bot) == dense
    made = commit_patch(bot, "sparse", density=0.1, importance="magnitude")
    assert made.compared is None
    assert "names no data" in (made.note or "")
    assert bot.status().is_clean


def test_a_refusal_of_the_gate_leaves_everything_as_it_was(bot: Repository) -> None:
    config = bot.worktree / "mgit.toml"
    config.write_text(CONFIG + '\n[eval.probe]\ntask = "questions"\naccuracy = { min = 0.99 }\n')
    bot.forget_settings()
    dense, head = dense_of(bot), bot.head()
    with pytest.raises(GateRefused):
        commit_patch(bot, "sparse", density=0.1)
    assert dense_of(bot) == dense
    assert bot.head() == head
    assert not bot.paths.rescue.exists()
    made = commit_patch(bot, "sparse", density=0.1, gate="warn")
    assert bot.commit_at(made.commit.id).verdicts


def test_other_files_are_recorded_as_they_are_and_stay_after_undo(bot: Repository) -> None:
    note = bot.worktree / "models/bot/config.json"
    note.write_text(note.read_text() + "\n")
    (bot.worktree / "data/more.txt").write_text("more")
    commit_patch(bot, "sparse", density=0.1)
    assert bot.status().is_clean
    manifest = bot.manifest_of(bot.head())
    assert manifest.file("data/more.txt") is not None
    undo(bot)
    assert (bot.worktree / "data/more.txt").read_text() == "more"
    assert note.read_text().endswith("\n")


def test_from_elsewhere_leaves_the_checkpoint_where_it_is(bot: Repository, write: Callable[..., None]) -> None:
    write(1, folder="../run")
    run = bot.worktree.parent / "run/model.safetensors"
    for name in ("config.json", "tokenizer.json"):
        (run.parent / name).write_bytes((bot.worktree / "models/bot" / name).read_bytes())
    restore(bot, ["."])
    base = dense_of(bot)
    dense = run.read_bytes()
    made = commit_patch(bot, "sparse", density=0.1, source=str(run.parent), as_path="models/bot")
    assert run.read_bytes() == dense
    assert made.rescued is None
    assert bot.status().is_clean
    assert dense_of(bot) not in (dense, base)
    undo(bot)
    assert dense_of(bot) == base
    commit_patch(bot, "sparse", density=0.1, source=str(run.parent), as_path="models/bot", worktree=False)
    assert dense_of(bot) == base


def test_new_and_reshaped_tensors_are_taken_whole_and_a_new_head_counts(
    bot: Repository, write: Callable[..., None]
) -> None:
    restore(bot, ["."])
    write(0, without=("classifier.weight", "classifier.bias"), **{"extra.weight": np.ones((3, 4), "<f4")})
    bot.commit("no head")
    grown = np.full((5, 4), 2, "<f4")
    write(1, **{"extra.weight": grown})
    made = commit_patch(bot, "sparse", density=0.05)
    got = tensors_of(bot)
    assert np.array_equal(got["extra.weight"], grown)
    assert np.array_equal(got["classifier.weight"], weights(1)["classifier.weight"])
    assert set(made.exact) == {"classifier.bias", "classifier.weight", "embeddings.position_ids", "extra.weight"}
    head = CLASSES * WIDTH + CLASSES
    assert made.kept.expected == pytest.approx(round(0.05 * made.kept.elements))
    assert made.kept.exact >= head
    undo(bot)
    with pytest.raises(UsageError, match="taken whole"):
        commit_patch(bot, "sparse", density=0.001)


def test_requests_that_make_no_sense(bot: Repository, write: Callable[..., None]) -> None:
    for options in ({}, {"density": 0.1, "max_kl": 0.1}, {"max_kl": 0.0}, {"density": 2.0}, {"density": 0.0}):
        with pytest.raises(UsageError):
            commit_patch(bot, "sparse", **options)
    with pytest.raises(UsageError, match="no importance"):
        commit_patch(bot, "sparse", density=0.1, importance="best")
    with pytest.raises(UsageError, match="no task"):
        commit_patch(bot, "sparse", density=0.1, task="other")
    with pytest.raises(UsageError, match="no density below"):
        commit_patch(bot, "sparse", max_kl=1e-15)
    restore(bot, ["."])
    with pytest.raises(NothingToDo):
        commit_patch(bot, "sparse", density=0.1)


def test_a_first_commit_is_no_patch(repo: Repository, files) -> None:
    (repo.worktree / "bot.safetensors").write_bytes(files.of_arrays(files.floats()))
    repo.track("bot.safetensors")
    with pytest.raises(UsageError, match="no commit"):
        commit_patch(repo, "sparse", density=0.1, importance="magnitude")


def test_a_collection_keeps_what_the_patch_needs(bot: Repository) -> None:
    made = commit_patch(bot, "sparse", density=0.1)
    before = tensors_of(bot)
    collect(bot)
    after = tensors_of(bot)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert made.rescued is not None
    assert made.rescued.is_dir()


@pytest.mark.parametrize("step", ["rescue", "seal", "journal", "files", "publish"])
def test_a_command_that_dies_leaves_the_dense_weights_somewhere(
    bot: Repository, make_repo: Callable[..., Repository], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Killed after each step; the next command finishes or forgets it."""
    from modelgit.repo.patches import density
    from modelgit.repo.tracking import update
    from modelgit.store.session import PackSession

    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    dense, head = dense_of(bot), bot.head()
    if step == "rescue":
        monkeypatch.setattr(density, "keep_dense", die)
    elif step == "seal":
        monkeypatch.setattr(PackSession, "seal", die)
    elif step == "journal":
        monkeypatch.setattr(density, "publish_commit", die)
    elif step == "files":
        monkeypatch.setattr(update, "write_files", die)
    else:
        monkeypatch.setattr(type(bot), "publish", die)
    with pytest.raises(Killed):
        commit_patch(bot, "sparse", density=0.1)
    monkeypatch.undo()
    bot.close()
    again = make_repo(existing=True)
    status = again.status()
    copies = [path.read_bytes() for path in again.paths.rescue.rglob("model.safetensors")]
    finished = again.head() != head
    assert finished == (step in ("files", "publish"))
    assert finished == (dense_of(again) != dense)
    assert status.is_clean == finished
    assert dense == dense_of(again) or dense in copies
    assert fsck(again).is_sound
    if finished:
        undo(again)
        assert dense_of(again) == dense


def test_archives_of_torch_keep_their_checksums(repo: Repository) -> None:
    import torch

    random = torch.Generator().manual_seed(0)
    state = {"a.weight": torch.randn(40, 30, generator=random), "steps": torch.tensor([3])}
    state["tied.weight"] = state["a.weight"]
    torch.save(state, repo.worktree / "bot.pt")
    repo.track("bot.pt")
    repo.commit("base")
    state = {"a.weight": state["a.weight"] + 0.1 * torch.randn(40, 30, generator=random), "steps": torch.tensor([4])}
    state["tied.weight"] = state["a.weight"]
    torch.save(state, repo.worktree / "bot.pt")
    made = commit_patch(repo, "sparse", density=0.1, importance="magnitude")
    loaded = torch.load(repo.worktree / "bot.pt", weights_only=True)
    assert loaded["steps"].item() == 4
    assert torch.equal(loaded["a.weight"], loaded["tied.weight"])
    assert 60 < made.kept.kept < 180
    assert repo.status().is_clean


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_half_precision_models_stay_half_precision(repo: Repository, files, dtype: str) -> None:
    from modelgit.numerics.floats import from_float64

    random = np.random.default_rng(0)
    old = random.standard_normal((50, 40)).astype(np.float32)
    new = old + 0.05 * random.standard_normal((50, 40)).astype(np.float32)
    for message, array in (("base", old), ("", new)):
        raw = from_float64(array.reshape(-1), dtype).tobytes()
        (repo.worktree / "bot.safetensors").write_bytes(
            files.safetensors({"w": (dtype, (50, 40), raw), "copy": (dtype, (50, 40), raw)})
        )
        if message:
            repo.track("bot.safetensors")
            repo.commit(message)
    made = commit_patch(repo, "sparse", density=0.2, importance="magnitude")
    state = repo.load()
    assert state["w"].dtype == dtype
    assert state["w"].raw() == state["copy"].raw()  # equal before and after: equal in between
    assert made.kept.elements == 2000


def test_errors_are_declared(bot: Repository) -> None:
    with pytest.raises(MgitError) as refused:
        commit_patch(bot, " ", density=0.1)
    assert refused.value.hint
