"""Where the bytes are, and how tensors are stored: sums that add up exactly, and reasons that fit the record."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from modelgit.objects import CommitId
from modelgit.repo import Repository
from modelgit.repo.branches import create_tag, delete_branch
from modelgit.repo.history.encodings import encodings
from modelgit.repo.tracking.undo import undo
from modelgit.repo.upkeep.gc import collect
from modelgit.repo.upkeep.usage import BASES, GARBAGE, UNDO, Grouping, usage


def on_disk(repo: Repository) -> int:
    return sum(path.stat().st_size for path in repo.store.packs_path.iterdir())


@pytest.fixture
def busy(bot: Repository, files) -> Repository:
    """Branches that share, something undone, something dropped, another file."""
    arrays = files.floats(5, rows=120, columns=90)

    def put(message: str) -> CommitId:
        (bot.worktree / "bot.safetensors").write_bytes(files.of_arrays(arrays))
        return bot.commit(message).id

    put("first")
    (bot.worktree / "notes.txt").write_text("notes " * 500)
    bot.track("notes.txt")
    arrays["layers.0.weight"] = arrays["layers.0.weight"].copy()
    arrays["layers.0.weight"][0] += 1
    put("second")
    create_tag(bot, "v1")
    bot.switch("side", create=True)
    arrays["layers.1.weight"] = files.floats(8, rows=120, columns=90)["layers.1.weight"]
    put("side")
    bot.switch("main")
    arrays["layers.1.weight"] = files.floats(5, rows=120, columns=90)["layers.1.weight"]
    arrays["layers.2.weight"] = (arrays["layers.2.weight"] * np.float32(1.001)).astype("<f4")
    put("undone")
    undo(bot)
    return bot


@pytest.mark.parametrize("by", [by for by in get_args(Grouping) if by != "ref"])
@pytest.mark.parametrize("revisions", [(), ("main",), ("side", "v1")])
def test_rows_add_up_to_the_packs(busy: Repository, by: str, revisions: tuple[str, ...]) -> None:
    report = usage(busy, revisions, by=by)
    assert report.total == on_disk(busy)
    assert sum(row.bytes for row in report.rows) == report.total
    assert all(row.bytes >= 0 for row in report.rows)


def test_kinds_tell_what_is_needed_and_what_is_not(busy: Repository) -> None:
    kinds = {row.name: row.bytes for row in usage(busy).rows}
    assert kinds["weights"] > 100_000
    assert kinds["other files"] > 0
    assert kinds["metadata"] > 0
    assert kinds[UNDO] > 10_000
    assert GARBAGE not in kinds
    freed = collect(busy, prune_now=True).bytes_freed
    assert freed == pytest.approx(kinds[UNDO], abs=2000)
    after = {row.name: row.bytes for row in usage(busy).rows}
    assert UNDO not in after
    assert after["weights"] == kinds["weights"]
    assert BASES not in after


def test_what_a_ref_holds_alone_is_what_goes_with_it(busy: Repository) -> None:
    collect(busy, prune_now=True)
    rows = {row.name: row.bytes for row in usage(busy, by="ref").rows}
    assert rows["heads/side"] > 30_000
    assert rows["tags/v1"] == rows["heads/main"] == 0, "the other one and the side branch reach the same commits"
    before = on_disk(busy)
    delete_branch(busy, "side", force=True)
    collect(busy, prune_now=True)
    assert before - on_disk(busy) == pytest.approx(rows["heads/side"], abs=1500)


def test_commits_say_what_they_share(busy: Repository) -> None:
    rows = {row.detail: row for row in usage(busy, by="commit").rows}
    assert rows["side"].unique > 30_000
    assert rows["first"].shared > 60_000
    assert rows["second"].shared > 60_000
    assert rows["second"].bytes < rows["first"].bytes


def test_tensors_say_how_they_are_coded(busy: Repository) -> None:
    rows = [row for row in usage(busy, by="tensor").rows if row.tensor is not None]
    coded = {row.name.split("@")[0]: row.tensor for row in rows if row.tensor.base is not None}
    assert coded["layers.0.weight"].base == "layers.0.weight"
    assert coded["layers.0.weight"].base_commit == busy.resolve("main~1")
    assert coded["layers.0.weight"].cost > 1.0
    assert all(row.tensor.raw_bytes == 43200 or row.tensor.raw_bytes == 3072 for row in rows)


def test_the_reason_fits_the_record(busy: Repository) -> None:
    [changed] = encodings(busy, busy.resolve("v1"))
    assert (changed.name, changed.codec, changed.depth) == ("layers.0.weight", "sparse", 1)
    assert changed.base_commit == busy.resolve("main~1")
    assert {estimate.codec for estimate in changed.estimates} >= {"sparse", "raw"}
    assert changed.reason
    first = encodings(busy, busy.resolve("main~1"))
    assert len(first) == 3
    assert all(item.base is None and item.depth == 0 and item.cost == 1.0 for item in first)
    assert sum(item.raw_bytes for item in first) == 3 * 43200


def test_a_tensor_of_the_model_counts_as_weights_wherever_else_it_lies(bot: Repository, files) -> None:
    """The copy beside it comes first by name, and is no part of the model."""
    folder = bot.worktree / "model"
    folder.mkdir()
    data = files.of_arrays(files.floats(3, rows=120, columns=90))
    (folder / "copy.safetensors").write_bytes(data)
    (folder / "model.safetensors").write_bytes(data)
    bot.track("model")
    bot.commit("twice")
    assert bot.manifest_of(bot.head()).models[-1].weights == ("model/model.safetensors",)
    files_by_name = {row.name: row.bytes for row in usage(bot, by="file").rows}
    assert files_by_name["model/model.safetensors"] > 50 * files_by_name.get("model/copy.safetensors", 0)
