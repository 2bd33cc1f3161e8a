"""The repository that format 1 wrote must be readable for ever: by modelgit, and by a reader made from the docs."""

import hashlib
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

import modelgit
from modelgit.environment import Environment
from modelgit.objects import CommitId
from modelgit.repo.upkeep.fsck import fsck

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "repository-v1"
EXPECTED = json.loads((FIXTURE / "expected.json").read_text())
COMMITS = sorted(EXPECTED["commits"])


@pytest.fixture
def repo(tmp_path: Path) -> modelgit.Repository:
    work = tmp_path / "work"
    shutil.copytree(FIXTURE / "mgit", work / ".mgit")
    environment = Environment(
        home=tmp_path,
        config_home=tmp_path / "config",
        cache_home=tmp_path / "cache",
        cwd=work,
        author="Test <test@example.org>",
    )
    opened = modelgit.open(work, environment=environment)
    yield opened
    opened.close()


def digests(folder: Path, names: list[str]) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def test_every_commit_comes_back_bit_for_bit(repo: modelgit.Repository) -> None:
    assert {ref: str(commit) for ref, commit in repo.view().refs.items()} == EXPECTED["refs"]
    for commit, files in EXPECTED["commits"].items():
        repo.switch(commit.removeprefix("b3:"), detach=True, discard=True)
        found = [path for path in repo.worktree.rglob("*") if path.is_file() and ".mgit" not in path.parts]
        assert sorted(path.relative_to(repo.worktree).as_posix() for path in found) == sorted(files)
        assert digests(repo.worktree, list(files)) == files


def test_nothing_in_it_is_damaged(repo: modelgit.Repository) -> None:
    report = fsck(repo)
    assert report.findings == ()
    assert report.commits == len(COMMITS)


def test_it_holds_what_it_is_meant_to_hold(repo: modelgit.Repository) -> None:
    assert set(EXPECTED["encodings"]) == {"delta", "planes", "raw", "sparse"}
    head = repo.commit_at(repo.resolve("main"))
    assert len(head.parents) == 2
    assert head.recipe is not None and head.recipe.strategy == "average"
    masked = [commit for commit in COMMITS if repo.patch_of(CommitId.parse(commit)).masks]
    assert len(masked) == 1


def test_work_goes_on_from_it(repo: modelgit.Repository) -> None:
    repo.switch("main", discard=True)
    config = repo.worktree / "models" / "bot" / "config.json"
    config.write_text('{"model_type": "changed"}\n')
    made = repo.commit("A change by a later version", gate="warn")
    assert repo.resolve("main") == made.id
    assert [change.path for change in made.patch.files] == ["models/bot/config.json"]


@pytest.mark.parametrize("commit", COMMITS)
def test_the_second_reader_agrees(second_reader: ModuleType, commit: str) -> None:
    repository = second_reader.Repository(FIXTURE / "mgit")
    assert {ref: f"b3:{digest.hex()}" for ref, digest in repository.refs().items()} == EXPECTED["refs"]
    files = repository.files(bytes.fromhex(commit.removeprefix("b3:")))
    assert {path: hashlib.sha256(data).hexdigest() for path, data in files.items()} == EXPECTED["commits"][commit]


def test_the_second_reader_walks_the_operations(second_reader: ModuleType) -> None:
    repository = second_reader.Repository(FIXTURE / "mgit")
    descriptions = []
    current = repository.root()["operation"]
    while current is not None:
        operation = repository.operation(current)
        descriptions.append(operation["description"])
        current = operation["parent"]
    assert descriptions[-1] == "initialise"
    assert sum(text.startswith("commit: ") for text in descriptions) == len(COMMITS) - 1
    assert any(text.startswith("merge") for text in descriptions)


def test_the_second_reader_reads_views_and_joined_literals(second_reader: ModuleType, tmp_path: Path) -> None:
    """A PyTorch file has one literal per tensor, all in one blob; ties and slices are views."""
    import torch

    work = tmp_path / "w"
    work.mkdir()
    environment = Environment(
        home=tmp_path, config_home=tmp_path / "c", cache_home=tmp_path / "k", cwd=work, author="Test <test@example.org>"
    )
    weight = torch.arange(12.0).reshape(3, 4)
    torch.save({"w": weight, "tied": weight, "part": torch.ones(9)[2:5]}, work / "m.pt")
    with modelgit.init(work, environment=environment) as repo:
        repo.track("m.pt")
        commit = repo.commit("one").id
    found = second_reader.Repository(work / ".mgit").files(bytes.fromhex(commit.hex))
    assert found["m.pt"] == (work / "m.pt").read_bytes()


def test_damage_does_not_pass(second_reader: ModuleType, tmp_path: Path) -> None:
    shutil.copytree(FIXTURE / "mgit", tmp_path / "mgit")
    pack = max((tmp_path / "mgit" / "packs").iterdir(), key=lambda path: path.stat().st_size)
    pack.chmod(0o644)
    data = bytearray(pack.read_bytes())
    data[1000] ^= 1
    pack.write_bytes(data)
    with pytest.raises(second_reader.Damaged):
        second_reader.Repository(tmp_path / "mgit")
