"""Fisher estimates as kept objects: coded, found again, resumed, inspected, named where they are used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from modelgit.errors import IntegrityError, MgitError, UsageError  # noqa: E402
from modelgit.integrations.demo.small import SETTINGS, write_checkpoint, write_data  # noqa: E402
from modelgit.objects import (  # noqa: E402
    CommitId,
    FisherEstimate,
    FisherId,
    KeptEstimate,
    Statistics,
    TensorEntry,
    TensorSpec,
)
from modelgit.patching.encode import TensorWriter  # noqa: E402
from modelgit.patching.jobs import BlobSource, StoreJob  # noqa: E402
from modelgit.patching.statistics import read_triangle  # noqa: E402
from modelgit.remotes.estimates import check_estimate  # noqa: E402
from modelgit.repo import Repository  # noqa: E402
from modelgit.repo.exchange.cloning import clone  # noqa: E402
from modelgit.repo.exchange.remote import add_remote  # noqa: E402
from modelgit.repo.exchange.sync import fetch, push  # noqa: E402
from modelgit.repo.layout import RepositoryPaths  # noqa: E402
from modelgit.repo.merges.merge import merge  # noqa: E402
from modelgit.repo.merges.replay import replay  # noqa: E402
from modelgit.repo.patches import fisher_passes  # noqa: E402
from modelgit.repo.patches.fisher import diagonal_of, estimate_fisher, list_estimates, shown_fisher, stored_fisher  # noqa: E402
from modelgit.repo.patches.fisher_summary import summarise  # noqa: E402
from modelgit.repo.patches.mask_create import create_mask  # noqa: E402
from modelgit.repo.statistics import find_kept, forget, kept_estimates, shapes_of  # noqa: E402
from modelgit.repo.upkeep.fsck import fsck  # noqa: E402
from modelgit.repo.upkeep.gc import collect  # noqa: E402
from modelgit.store.metadata import read_record, write_record  # noqa: E402

TASKS = SETTINGS.partition("# The gate")[0]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def change(repo: Repository, scale: float, heads: str) -> CommitId:
    """Move some weights and one head, as training would."""
    from safetensors.numpy import load_file, save_file

    file = repo.worktree / "models/bot/model.safetensors"
    state = load_file(file)
    random = np.random.default_rng(int(scale * 1000))
    for name, array in state.items():
        if name.startswith(f"heads.{heads}") or "layer.1" in name:
            state[name] = (array + scale * random.standard_normal(array.shape)).astype(np.float32)
    save_file(state, file)
    return repo.commit(f"train {heads}").id


def set_up(repo: Repository) -> Repository:
    """A tiny BERT with two heads and data for both, and a branch for each."""
    model = repo.worktree / "models/bot"
    model.mkdir(parents=True)
    write_checkpoint(model)
    (repo.worktree / "data").mkdir()
    write_data(repo.worktree / "data", train=40, test=10)
    (repo.worktree / "mgit.toml").write_text(TASKS)
    repo.forget_settings()
    repo.commit("base")
    for number, branch in enumerate(("topic", "tone")):
        repo.switch(branch, create=True, start="main") if number else repo.switch(branch, create=True)
        change(repo, 0.01 * (number + 1), branch)
        repo.switch("main")
    return repo


@pytest.fixture
def tasks(repo: Repository) -> Repository:
    return set_up(repo)


def test_an_estimate_is_coded_kept_and_found_again(tasks: Repository) -> None:
    exact = estimate_fisher(tasks, task="topic", revision="topic", exact_storage=True)
    assert not exact.cached and not exact.estimate.scales
    assert estimate_fisher(tasks, task="topic", revision="topic").id == exact.id  # exact is good for both
    forget(tasks, find_kept(tasks, "latest"))
    coded = estimate_fisher(tasks, task="topic", revision="topic")
    assert not coded.cached and len(coded.estimate.scales) > 30
    again = estimate_fisher(tasks, task="topic", revision="topic")
    assert again.cached and again.id == coded.id and again.words.startswith("Fisher kept from an earlier pass over 40")
    assert not estimate_fisher(tasks, task="topic", revision="topic", seed=1, examples=20).cached
    # Asked for exactly, codes will not do.
    assert estimate_fisher(tasks, task="topic", revision="topic", exact_storage=True).id == exact.id
    left, right = diagonal_of(tasks, exact.estimate), diagonal_of(tasks, coded.estimate)
    assert sorted(left) == sorted(right) and left.keys() == right.keys()
    for name in left:
        total = float(left[name].sum(dtype=np.float64))
        assert float(right[name].sum(dtype=np.float64)) == pytest.approx(total, rel=1e-3)
        assert np.array_equal(left[name] == 0, right[name] == 0)
        near = left[name] > left[name].max() * 1e-8
        assert np.allclose(left[name][near], right[name][near], rtol=0.05, atol=0)
    assert exact.estimate.head == ("heads.topic.bias", "heads.topic.weight") and exact.estimate.weights


def test_the_list_survives_gc_and_undo_and_forgets_what_is_removed(tasks: Repository) -> None:
    made = estimate_fisher(tasks, task="topic", revision="topic")
    operations = len(list(tasks.operations.history(tasks.roots.read().root.operation)))
    estimate_fisher(tasks, task="tone", revision="tone")
    # Keeping an estimate is nothing that `undo` could take back.
    assert len(list(tasks.operations.history(tasks.roots.read().root.operation))) == operations
    collect(tasks, prune_now=True)
    assert [item.estimate.task for item in list_estimates(tasks)] == ["tone", "topic"]
    assert estimate_fisher(tasks, task="topic", revision="topic").cached
    assert not fsck(tasks).findings
    forget(tasks, find_kept(tasks, made.id.hex[:8]))
    before = tasks.store.has(made.id)
    collect(tasks, prune_now=True)
    assert before and [item.estimate.task for item in list_estimates(tasks)] == ["tone"]
    with pytest.raises(UsageError, match="no Fisher estimate"):
        stored_fisher(tasks, made.id.hex[:8])


def test_a_damaged_list_is_one_sentence_and_a_finding(tasks: Repository) -> None:
    estimate_fisher(tasks, task="topic", revision="topic")
    [file] = (tasks.paths.directory / "statistics").iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match=r"the list of kept estimates .* does not match its id"):
        kept_estimates(tasks)
    with pytest.raises(IntegrityError):
        collect(tasks)
    assert [finding.subject for finding in fsck(tasks).findings] == ["statistics"]


class Killed(BaseException):
    """The process ends here."""


def test_an_interrupted_pass_goes_on_and_ends_as_if_nothing_had_been(
    tasks: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelgit.fisher import estimate

    monkeypatch.setattr(estimate, "BLOCK", 8)
    monkeypatch.setattr(fisher_passes, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(fisher_passes, "_BUSY", 0)
    whole = estimate_fisher(tasks, task="topic", revision="topic", examples=40, exact_storage=True)
    forget(tasks, find_kept(tasks, "latest"))
    seen = []
    block = estimate.Accumulator._block

    def killed(self, positions):  # type: ignore[no-untyped-def]
        seen.append(len(positions))
        if len(seen) == 4:
            raise Killed
        block(self, positions)

    monkeypatch.setattr(estimate.Accumulator, "_block", killed)
    with pytest.raises(Killed):
        estimate_fisher(tasks, task="topic", revision="topic", examples=40, exact_storage=True)
    [saved] = tasks.paths.passes.iterdir()
    collect(tasks)
    monkeypatch.setattr(estimate.Accumulator, "_block", block)
    again = estimate_fisher(tasks, task="topic", revision="topic", examples=40, exact_storage=True)
    assert again.resumed == 24 and again.estimate == whole.estimate
    assert not saved.exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_damaged_state_is_ignored(tasks: Repository, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    from modelgit.fisher import estimate

    monkeypatch.setattr(estimate, "BLOCK", 8)
    monkeypatch.setattr(fisher_passes, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(fisher_passes, "_BUSY", 0)
    monkeypatch.setattr(Path, "unlink", lambda *_args, **_options: None)  # the state stays as if we had been killed
    estimate_fisher(tasks, task="topic", revision="topic", examples=24, exact_storage=True)
    monkeypatch.undo()
    monkeypatch.setattr(estimate, "BLOCK", 8)
    [saved] = [path for path in tasks.paths.passes.iterdir() if not path.name.startswith("tmp-")]
    forget(tasks, find_kept(tasks, "latest"))
    data = bytearray(saved.read_bytes())
    if damage == "cut":
        saved.write_bytes(data[:-100])
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        saved.write_bytes(data)
    elif damage == "empty":
        saved.write_bytes(b"")
    else:  # of more examples than are asked for now
        assert estimate_fisher(tasks, task="topic", revision="topic", examples=16).resumed == 0
        return
    assert estimate_fisher(tasks, task="topic", revision="topic", examples=40).resumed == 0


def test_more_examples_go_on_from_fewer(tasks: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelgit.fisher import estimate

    monkeypatch.setattr(estimate, "BLOCK", 8)
    whole = estimate_fisher(tasks, task="topic", revision="topic", examples=40)
    assert whole.estimate.criterion == 0.8 and whole.estimate.overlap is not None
    assert estimate_fisher(tasks, task="topic", revision="topic", settle=None).estimate.settled is None
    early = estimate_fisher(tasks, task="topic", revision="topic", settle=0.01)
    assert early.estimate.settled and early.estimate.examples == 32 and early.estimate.requested == 512


def test_the_summary_adds_up(tasks: Repository) -> None:
    made = estimate_fisher(tasks, task="topic", revision="topic")
    summary = summarise(tasks, made.estimate)
    values = np.concatenate([array.reshape(-1) for array in diagonal_of(tasks, made.estimate).values()]).astype(float)
    assert summary.elements == values.size and summary.zeros == int((values == 0).sum())
    assert summary.trace == pytest.approx(values.sum()) == pytest.approx(summary.body_trace + summary.head_trace)
    assert summary.effective == pytest.approx(values.sum() ** 2 / np.square(values).sum())
    assert sum(layer.share for layer in summary.layers) == pytest.approx(1)
    assert sum(tensor.share for tensor in summary.tensors) == pytest.approx(1)
    body = np.sort(
        np.concatenate(
            [array.reshape(-1) for name, array in diagonal_of(tasks, made.estimate).items() if "heads" not in name]
        )
    )[::-1].astype(float)
    for part, mass in summary.top.items():
        count = round(float(part) * body.size)
        assert mass == pytest.approx(body[:count].sum() / body.sum(), rel=0.02)
    assert {mass.name for mass in summary.layers if mass.head} == {"heads.topic"}


def test_shown_is_the_newest_of_a_revision_or_an_id(tasks: Repository) -> None:
    made = estimate_fisher(tasks, task="topic", revision="topic")
    newer = estimate_fisher(tasks, task="topic", revision="topic", examples=9)
    assert shown_fisher(tasks, "topic").id == newer.id == shown_fisher(tasks, "latest").id
    assert shown_fisher(tasks, made.id.hex[:10]).id == made.id
    with pytest.raises(UsageError, match="no Fisher estimate is kept of the weights at tone"):
        shown_fisher(tasks, "tone")
    with pytest.raises(UsageError, match="no Fisher estimate `nothing`"):
        shown_fisher(tasks, "nothing")


def test_shown_can_be_that_of_a_task(tasks: Repository) -> None:
    topic = estimate_fisher(tasks, task="topic", revision="topic")
    tone = estimate_fisher(tasks, task="tone", revision="topic")
    assert shown_fisher(tasks, "topic").id == shown_fisher(tasks, "topic", task="tone").id == tone.id
    assert shown_fisher(tasks, "topic", task="topic").id == topic.id
    with pytest.raises(UsageError, match="no Fisher estimate of task other is kept of the weights at topic") as refused:
        shown_fisher(tasks, "topic", task="other")
    assert refused.value.hint == "`mgit fisher topic --task other` makes one"


def test_shown_is_the_newest_of_all_models(tasks: Repository) -> None:
    from safetensors.numpy import load_file, save_file

    shutil.copytree(tasks.worktree / "models/bot", tasks.worktree / "models/zebra")
    file = tasks.worktree / "models/zebra/model.safetensors"
    save_file({name: value + np.float32(0.01) for name, value in load_file(file).items()}, file)
    tasks.track("models/zebra")
    config = tasks.worktree / "mgit.toml"
    topic = TASKS[TASKS.index("[task.topic]") : TASKS.index("[task.tone]")]
    config.write_text(
        config.read_text() + topic.replace("task.topic", "task.other").replace("models/bot", "models/zebra")
    )
    repo = Repository.open(tasks.worktree)
    repo.commit("two models")
    first = estimate_fisher(repo, task="topic")
    assert shown_fisher(repo, "HEAD").id == first.id
    second = estimate_fisher(repo, task="other")
    assert shown_fisher(repo, "HEAD").id == second.id != first.id


def test_a_merge_says_where_its_fisher_came_from(tasks: Repository) -> None:
    kept = estimate_fisher(tasks, task="topic", revision="topic")
    tasks.switch("topic")
    result = tasks.merge("tone")
    assert result.notes[:2] == (
        "ours: Fisher kept from an earlier pass over 40 examples of task topic (exact)",
        "theirs: Fisher estimated now on 40 examples of task tone (exact)",
    )
    recipe = tasks.commit_at(result.commit.id).recipe
    assert result.strategy == recipe.strategy == "fisher"
    assert [(item.side, item.how) for item in recipe.fishers] == [("ours", "kept"), ("theirs", "made")]
    assert recipe.fishers[0].estimate == kept.id


def test_a_merge_without_any_fisher_is_an_average_and_says_so(tasks: Repository) -> None:
    tasks.switch("topic")
    (tasks.worktree / "mgit.toml").write_text('[track]\npaths = ["models/bot", "data"]\n')
    tasks.forget_settings()
    tasks.commit("no tasks any more")
    rules = {"*.bias": "fisher weights=1,3", "*.x": "ours"}
    result = merge(tasks, "tone", strategy="fisher", options={"weights": "2,1"}, rules=rules)
    recipe = tasks.commit_at(result.commit.id).recipe
    assert result.strategy == recipe.strategy == "average"
    assert recipe.options == {"weights": "2.0,1.0"}
    assert recipe.rules == {"*.bias": "average weights=1.0,3.0", "*.x": "ours"}
    assert [item.how for item in recipe.fishers] == ["none", "none"]
    assert result.notes[-1] == "no side has a Fisher estimate: the values were averaged instead, and the recipe says so"
    assert "no task of mgit.toml computes with it" in result.notes[0]


def test_keys_replace_and_order(tasks: Repository) -> None:
    first = estimate_fisher(tasks, task="topic", revision="topic")
    [kept] = kept_estimates(tasks)
    assert isinstance(kept, KeptEstimate) and kept.weights == first.estimate.weights and kept.origin == ""
    assert json.loads(json.dumps(kept.key)).startswith(first.estimate.weights)


@pytest.fixture
def shared(tasks: Repository, tmp_path: Path) -> Repository:
    """A repository with an estimate for each branch and a remote that has everything, estimates too."""
    for branch in ("topic", "tone"):
        estimate_fisher(tasks, task=branch, revision=branch)
    add_remote(tasks, "origin", str(tmp_path / "origin.mgit"))
    sent = push(tasks, "origin", ["main", "topic", "tone"], fisher=True)
    assert len(sent.fisher.estimates) == 2 and sent.fisher.objects > 60
    return tasks


def cloned(shared: Repository, tmp_path: Path, name: str = "other", **options: object) -> Repository:
    return clone(str(tmp_path / "origin.mgit"), tmp_path / name, environment=shared.environment, **options)


def test_a_branch_from_elsewhere_brings_its_own_fisher_and_merges_without_data(
    shared: Repository, tmp_path: Path
) -> None:
    assert push(shared, "origin", ["main", "topic", "tone"], fisher=True).fisher.estimates == ()
    with cloned(shared, tmp_path, branch="topic", fisher=True) as other:
        for file in (other.worktree / "data").iterdir():
            file.unlink()
        other.commit("no data here")
        assert [item.origin for item in kept_estimates(other)] == ["origin", "origin"]
        collect(other, prune_now=True)
        merged = merge(other, "origin/tone")
        assert merged.notes[:2] == (
            "ours: Fisher received from origin, estimated on 40 examples of task topic (exact)",
            "theirs: Fisher received from origin, estimated on 40 examples of task tone (exact)",
        )
        assert merged.strategy == "fisher" and not fsck(other).findings
    # The same merge, with the estimates that were made here: bit for bit the same weights.
    shared.switch("topic")
    for file in (shared.worktree / "data").iterdir():
        file.unlink()
    shared.commit("no data here")
    here = merge(shared, "tone")
    trees = [
        {entry.path: entry.digest for entry in repo.manifest_of(result.commit.id).files}
        for repo, result in ((shared, here), (other, merged))
    ]
    assert trees[0] == trees[1]


def test_without_being_asked_nothing_travels(shared: Repository, tmp_path: Path) -> None:
    with cloned(shared, tmp_path) as other:
        assert kept_estimates(other) == []
        fetched = fetch(other, "origin", fisher=True)
        assert len(fetched.fisher.estimates) == 2 and fetched.fisher.bytes_moved > 10_000
        assert fetch(other, "origin", fisher=True).fisher.estimates == ()


def test_only_estimates_of_what_is_sent_travel(tasks: Repository, tmp_path: Path) -> None:
    for branch in ("topic", "tone"):
        estimate_fisher(tasks, task=branch, revision=branch)
    add_remote(tasks, "origin", str(tmp_path / "origin.mgit"))
    assert [item.id for item in push(tasks, "origin", ["main"], fisher=True).fisher.estimates] == []
    [sent] = push(tasks, "origin", ["tone"], fisher=True).fisher.estimates
    assert sent.weights == estimate_fisher(tasks, task="tone", revision="tone").estimate.weights


def test_a_collection_on_the_remote_keeps_estimates(shared: Repository, tmp_path: Path) -> None:
    bare = Repository(RepositoryPaths(tmp_path / "origin.mgit", worktree=None), shared.environment)
    (tmp_path / "origin.mgit" / "worktree").mkdir()
    collect(bare, prune_now=True)
    assert len(kept_estimates(bare)) == 2 and kept_estimates(bare)[0].origin == "Ada <ada@example.org>"
    bare.close()
    with cloned(shared, tmp_path, fisher=True) as other:
        assert len(list_estimates(other)) == 2


def rewrite_list(tmp_path: Path, shared: Repository, change) -> None:  # type: ignore[no-untyped-def]
    bare = Repository(RepositoryPaths(tmp_path / "origin.mgit", worktree=None), shared.environment)
    bare.publish(lambda view: view, "lie", keep=change)
    bare.close()


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ("key", "lists a Fisher estimate under the name '../../x'"),
        ("weights", "refuses Fisher estimate [0-9a-f]{12} from origin: it is of other weights than the list says"),
        ("absent", "does not hold fisher"),
        ("bytes", "the list of kept estimates .* does not match its id"),
        ("gone", "the list of kept estimates .* is missing"),
    ],
)
def test_a_hostile_list_is_one_sentence_and_changes_nothing(
    shared: Repository, tmp_path: Path, lie: str, message: str
) -> None:
    def change(record: Statistics) -> Statistics:
        first, second = record.fishers
        if lie == "key":
            return Statistics(fishers=(first, replace(second, key="../../x")))
        if lie == "weights":
            return Statistics(fishers=(first, replace(second, id=first.id)))
        return Statistics(fishers=(first, replace(second, id=FisherId(bytes(32)))))

    if lie in ("bytes", "gone"):
        for file in (tmp_path / "origin.mgit/statistics").iterdir():
            file.unlink() if lie == "gone" else file.write_bytes(b"\x80")
    else:
        rewrite_list(tmp_path, shared, change)
    with cloned(shared, tmp_path) as other:
        with pytest.raises(MgitError, match=message) as caught:
            fetch(other, "origin", fisher=True)
        assert "\n" not in caught.value.message
        assert kept_estimates(other) == [] and not fsck(other).findings
        assert not list((other.paths.directory / "incoming").glob("*/*"))
    with pytest.raises(MgitError):
        cloned(shared, tmp_path, "third", fisher=True)
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize(
    ("name", "lie", "message"),
    [
        ("scale", float("nan"), "has the scale nan"),
        ("scale", -1.0, "has the scale -1.0"),
        ("values", -1.0, "negative or not finite"),
        ("values", float("inf"), "negative or not finite"),
        ("shape", None, "is not one of the model, or has another form"),
        ("model", None, "whose weights are others"),
        ("order", None, "out of order"),
    ],
)
def test_a_hostile_estimate_is_refused(
    shared: Repository, tmp_path: Path, name: str, lie: float | None, message: str
) -> None:
    """Everything has the right id; it is what it says that is wrong."""
    bare = Repository(RepositoryPaths(tmp_path / "origin.mgit", worktree=None), shared.environment)
    kept = kept_estimates(bare)[0]
    record = read_record(bare.store, kept.id, FisherEstimate)
    index = next(at for at, entry in enumerate(record.diagonal) if len(entry.spec.shape) == 1)
    entry = record.diagonal[index]
    with bare.session() as session:
        spec = TensorSpec(dtype="F32", shape=entry.spec.shape if name != "shape" else (*entry.spec.shape, 1))
        data = np.full(spec.shape, lie if name == "values" else 1.0, "<f4").tobytes()
        [stored] = TensorWriter(session, threads=1).store([StoreJob(entry.name, BlobSource(data), spec, len(data))])
        fake = TensorEntry(name=entry.name, spec=spec, id=stored.id)
        diagonal = (*record.diagonal[:index], fake, *record.diagonal[index + 1 :])
        scales = {key: value for key, value in record.scales.items() if key != entry.name}
        if name == "scale":
            diagonal, scales = record.diagonal, {**record.scales, next(iter(record.scales)): lie}
        elif name == "model":
            record = replace(record, model="data")
        elif name == "order":
            diagonal = diagonal[::-1]
        lied = write_record(session, FisherId, replace(record, diagonal=diagonal, scales=scales))
        session.seal()
        bare.publish(
            lambda view: view,
            "lie",
            session=session,
            keep=lambda _: Statistics(fishers=(replace(kept, id=lied),)),
        )
    bare.close()
    with cloned(shared, tmp_path) as other:
        with pytest.raises(IntegrityError, match=message) as caught:
            fetch(other, "origin", fisher=True)
        assert caught.value.message.startswith("refuses Fisher estimate ") and kept_estimates(other) == []


def test_a_mask_from_a_received_estimate_needs_no_data(shared: Repository, tmp_path: Path) -> None:
    here = create_mask(shared, density=0.05, task="topic", revision="topic")
    with cloned(shared, tmp_path, branch="topic", fisher=True) as other:
        shutil.rmtree(other.worktree / "data")
        there = create_mask(other, density=0.05, task="topic")
        assert there.fisher == "Fisher received from origin, estimated on 40 examples of task topic (exact)"
        assert there.mask.record.regions == here.mask.record.regions
        # What was asked for in particular is not replaced by something else.
        with pytest.raises(UsageError, match=r"data/topic\.train\.jsonl is not there"):
            estimate_fisher(other, task="topic", estimator="sampled")


# -- Gram matrices, which are kept in the same record

DENSE = "encoder.layer.1.output.dense.weight"


def test_gram_matrices_are_kept_with_the_estimate_and_serve_every_question(tasks: Repository) -> None:
    plain = estimate_fisher(tasks, task="topic", revision="topic", exact_storage=True)
    made = estimate_fisher(tasks, task="topic", revision="topic", grams=True, exact_storage=True)
    assert not plain.estimate.grams and not made.cached and made.words.endswith(", with Gram matrices")
    ours, theirs = diagonal_of(tasks, plain.estimate), diagonal_of(tasks, made.estimate)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    forget(tasks, find_kept(tasks, plain.id.hex[:12]))
    assert estimate_fisher(tasks, task="topic", revision="topic").id == made.id  # more than was asked for
    coded = made.estimate.coded_grams()
    assert len(coded) == 13 and not any(gram.first for gram in coded.values())
    matrix = read_triangle(tasks.reader(), coded[DENSE])
    assert np.array_equal(matrix, matrix.T) and np.linalg.eigvalsh(matrix).min() > -1e-6 * np.trace(matrix)
    collect(tasks, prune_now=True)
    assert np.array_equal(read_triangle(tasks.reader(), coded[DENSE]), matrix) and not fsck(tasks).findings


@pytest.mark.parametrize("strategy", ["regmean", "mats"])
def test_a_merge_takes_gram_matrices_names_them_and_is_made_again(tasks: Repository, strategy: str) -> None:
    tasks.switch("topic")
    estimate_fisher(tasks, task="topic")  # without matrices: not what is asked for
    done = merge(tasks, "tone", strategy=strategy)
    assert done.notes[0] == "ours: Fisher estimated now on 40 examples of task topic (exact), with Gram matrices"
    recipe = tasks.commit_at(done.commit.id).recipe
    assert recipe is not None and recipe.strategy == done.strategy == strategy
    estimates = {item.id: item.estimate for item in list_estimates(tasks)}
    assert all(used.estimate is not None and estimates[used.estimate].grams for used in recipe.fishers)
    assert replay(tasks, "HEAD").is_same
    base, ours, theirs, now = (
        tasks.load(name)[DENSE].numpy().astype(np.float64) for name in ("main", "HEAD~1", "tone", "HEAD")
    )
    if strategy == "regmean":
        grams = [estimates[used.estimate].coded_grams()[DENSE] for used in recipe.fishers]
        matrices = [read_triangle(tasks.reader(), gram) for gram in grams]
        one, two = (0.9 * matrix + 0.1 * np.diag(np.diagonal(matrix)) for matrix in matrices)
        assert np.allclose(now, np.linalg.solve(one + two, (ours @ one + theirs @ two).T).T, rtol=1e-5, atol=1e-7)
    assert np.abs(now - (ours + theirs) / 2).max() > 1e-4 < np.abs(now - base).max()


def test_a_merge_says_which_gram_matrices_it_lacks(tasks: Repository) -> None:
    for branch in ("topic", "tone"):
        estimate_fisher(tasks, task=branch, revision=branch)
    tasks.switch("topic")
    for file in (tasks.worktree / "data").iterdir():
        file.unlink()
    tasks.commit("no data any more")
    done = merge(tasks, "tone", strategy="regmean", dry_run=True)
    assert done.notes[0].endswith("(exact); it has no Gram matrices, and none can be made here")
    [lacking] = [note for note in done.notes if "no Gram matrix on every side" in note]
    assert lacking.endswith("combined by the weights alone") and done.strategy == "regmean"
    for item in list_estimates(tasks):
        forget(tasks, find_kept(tasks, item.id.hex))
    done = merge(tasks, "tone", strategy="mats", dry_run=True)
    assert done.strategy == "average" and any("the values were averaged instead" in note for note in done.notes)


def test_gram_matrices_travel(tasks: Repository, tmp_path: Path) -> None:
    made = estimate_fisher(tasks, task="topic", revision="topic", grams=True)
    add_remote(tasks, "origin", str(tmp_path / "origin.mgit"))
    push(tasks, "origin", ["topic"], fisher=True)
    matrix = read_triangle(tasks.reader(), made.estimate.coded_grams()[DENSE])
    with cloned(tasks, tmp_path, branch="topic", fisher=True) as other:
        [found] = list_estimates(other)
        assert found.id == made.id and found.origin == "origin" and not fsck(other).findings
        assert np.array_equal(read_triangle(other.reader(), found.estimate.coded_grams()[DENSE]), matrix)


@pytest.mark.parametrize(
    ("lie", "message"), [("size", "does not fit what goes into it"), ("order", "Gram matrices are out of order")]
)
def test_hostile_gram_matrices_are_refused(tasks: Repository, lie: str, message: str) -> None:
    made = estimate_fisher(tasks, task="topic", revision="topic", grams=True)
    [kept] = kept_estimates(tasks)
    shapes = shapes_of(tasks, tasks.manifest_of(tasks.resolve("topic")), "models/bot")
    check_estimate(kept, made.estimate, shapes)
    grams = made.estimate.grams[::-1]
    if lie == "size":
        grams = (replace(made.estimate.grams[0], size=made.estimate.grams[0].size + 1), *made.estimate.grams[1:])
    with pytest.raises(IntegrityError, match=message):
        check_estimate(kept, replace(made.estimate, grams=grams), shapes)
