"""`mask verify`: commits, checkpoints and every step of a run are held to the mask, and one value outside is found."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from modelgit.cli.main import main  # noqa: E402
from modelgit.errors import UsageError  # noqa: E402
from modelgit.integrations.torch import freeze_outside  # noqa: E402
from modelgit.repo import Repository  # noqa: E402
from modelgit.repo.contents import tensors_of  # noqa: E402
from modelgit.repo.patches.mask_verify import MaskVerification, verify_mask  # noqa: E402
from modelgit.repo.patches.masks import keep_mask  # noqa: E402

POSITIONS = {"0.weight": np.arange(0, 48, 5), "2.bias": None}
DATA = torch.randn(16, 6, generator=torch.Generator().manual_seed(3))


def net() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))


class Lab:
    """A repository with a model, a mask, and training that starts from the commit."""

    def __init__(self, repo: Repository, *, kind: torch.dtype = torch.float32) -> None:
        self.repo = repo
        self.model = net().to(kind)
        self.save(repo.worktree / "bot.safetensors")
        repo.track("bot.safetensors")
        self.base = repo.commit("base")
        tensors = tensors_of(repo, self.base.manifest, self.base.manifest.models[0])
        stored = keep_mask(repo, "bot.safetensors", POSITIONS, tensors, origin="by hand")
        self.mask_id, self.mask = stored.id, stored.record
        self.journal = repo.worktree / "run.journal"

    def save(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        save_file({name: value.contiguous() for name, value in self.model.state_dict().items()}, path)

    def train(
        self,
        steps: int,
        *,
        before: Callable[[int], None] = lambda _: None,
        kind: torch.dtype | None = None,
        **options: object,
    ) -> None:
        """AdamW with weight decay and moments from a run without the mask."""
        start = {name: value.clone() for name, value in self.model.state_dict().items()}
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05, weight_decay=0.3)
        for _ in range(3):
            self.step(optimizer)
        assert all(float(state["exp_avg"].abs().sum()) > 0 for state in optimizer.state.values())
        self.model.load_state_dict(start)
        if kind is not None:
            self.model.to(kind)
            optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05, weight_decay=0.3)
        mask = self.repo.mask("latest")
        with freeze_outside(self.model, mask, optimizer, journal=self.journal, **options):
            for number in range(1, steps + 1):
                self.step(optimizer, lambda number=number: before(number))

    def step(self, optimizer: torch.optim.Optimizer, before: Callable[[], None] = lambda: None) -> None:
        optimizer.zero_grad()
        self.model(DATA.to(self.model[0].weight.dtype)).square().mean().backward()
        before()
        optimizer.step()

    def verify(self, *targets: str, run: bool = False, **options: object) -> MaskVerification:
        return verify_mask(self.repo, "latest", targets=targets, runs=[self.journal] if run else [], **options)


@pytest.fixture
def lab(repo: Repository) -> Lab:
    return Lab(repo)


def test_every_step_of_a_run(lab: Lab) -> None:
    lab.train(7)
    found = lab.verify(run=True)
    assert found == MaskVerification(lab.mask_id, lab.base.id, 0, 0, 7, 7, False, (), ())
    lab.train(2)  # goes on
    found = lab.verify(run=True)
    assert (found.steps, found.steps_made, found.violations) == (9, 9, ())


@pytest.mark.parametrize("counted", [False, True])
def test_a_leak_of_one_value_that_was_taken_back(lab: Lab, counted: bool) -> None:
    flat = lab.model[2].weight.data.view(-1)
    kept = flat[5].clone()

    def plant(step: int) -> None:
        if step == 3:
            flat[5] = torch.nextafter(flat[5], torch.tensor(9.0))
        if step == 4:
            flat[5] = kept

    lab.train(6, before=plant, reference=lab.repo.load("HEAD") if counted else None)
    found = lab.verify(run=True)
    assert found.steps == 6
    assert found.violations == (("step 3", "2.weight", 1 if counted else None, "changed"),)
    lab.save(lab.repo.worktree / "end.safetensors")
    assert lab.verify("end.safetensors").violations == ()  # nothing but the journal knows


def test_a_run_from_another_start(lab: Lab) -> None:
    with torch.no_grad():
        lab.model[0].bias[1] += 1
        lab.model[2].bias += 1  # allowed
        lab.model[0].weight.view(-1)[5] += 1  # allowed
    lab.train(2)
    (found,) = lab.verify(run=True).violations
    assert (found.where, found.tensor, found.why) == ("the start of the run (before step 1)", "0.bias", "changed")


@pytest.mark.parametrize(("stored", "trained"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_a_run_in_another_element_type(repo: Repository, stored: torch.dtype, trained: torch.dtype) -> None:
    lab = Lab(repo, kind=stored)
    lab.train(2, kind=trained)
    found = lab.verify(run=True)
    assert (found.steps, found.violations, found.unknown) == (2, (), ())


def test_tensors_that_the_base_does_not_have(lab: Lab) -> None:
    lab.model.append(torch.nn.Linear(3, 3))
    lab.train(2)
    assert lab.verify(run=True).unknown == ("3.weight", "3.bias")


def edit(lab: Lab, change: Callable[[list[dict[str, object]]], object]) -> None:
    lines = [json.loads(line) for line in lab.journal.read_text().splitlines()]
    change(lines)
    lab.journal.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_journals_with_gaps_and_without_an_end(lab: Lab) -> None:
    lab.train(5)
    edit(lab, lambda lines: lines.pop(3))
    assert [(item.where, item.why) for item in lab.verify(run=True).violations] == [("step 3", "missing")]
    edit(lab, lambda lines: lines.pop())
    found = lab.verify(run=True)
    assert found.unfinished and found.steps == 4
    edit(lab, lambda lines: lines.pop(0))
    with pytest.raises(UsageError, match="line 1 of the journal"):
        lab.verify(run=True)
    with pytest.raises(UsageError, match="there is no journal"):
        verify_mask(lab.repo, "latest", runs=["nowhere"])


def test_the_last_steps_may_not_be_cut_away(lab: Lab) -> None:
    lab.train(4)
    edit(lab, lambda lines: lines.pop(-2))
    assert [(item.where, item.why) for item in lab.verify(run=True).violations] == [("step 4", "missing")]


def test_a_journal_of_every_other_step(lab: Lab) -> None:
    lab.train(5, journal_every=2)
    found = lab.verify(run=True)
    assert (found.steps, found.steps_made, found.violations) == (2, 5, ())


def test_another_mask_is_no_proof(lab: Lab) -> None:
    lab.train(1)
    tensors = tensors_of(lab.repo, lab.base.manifest, lab.base.manifest.models[0])
    other = keep_mask(lab.repo, "bot.safetensors", {"0.bias": np.array([2])}, tensors, origin="other").id
    with pytest.raises(UsageError, match="another mask"):
        verify_mask(lab.repo, other.hex, runs=[lab.journal])
    edit(lab, lambda lines: lines[0]["tensors"].pop("0.bias"))
    with pytest.raises(UsageError, match="contradicts itself"):
        verify_mask(lab.repo, lab.mask_id.hex, runs=[lab.journal])


def commit(lab: Lab, message: str) -> None:
    lab.save(lab.repo.worktree / "bot.safetensors")
    lab.repo.commit(message)


def test_every_commit_of_a_range(lab: Lab) -> None:
    with pytest.raises(UsageError, match="HEAD has no parent"):
        lab.verify()
    for message in ("one", "two"):
        lab.train(2)
        commit(lab, message)
    assert lab.verify("HEAD~2..HEAD").commits == 2
    assert lab.verify("HEAD~2..HEAD").violations == ()
    kept = lab.model[2].weight.detach().clone()
    with torch.no_grad():
        lab.model[2].weight[1, 2] *= -1
        lab.model[2].weight[0, 0] += 1
    commit(lab, "strays")
    with torch.no_grad():
        lab.model[2].weight.copy_(kept)
    commit(lab, "back")
    found = lab.verify("HEAD~4..HEAD")
    strays = lab.repo.resolve("HEAD~1").short
    assert found.commits == 4
    assert found.violations == ((strays, "2.weight", 2, "changed"),)
    assert lab.verify("HEAD~1").violations == found.violations
    assert lab.verify().violations == (
        (lab.repo.resolve("HEAD").short, "2.weight", 2, "changed"),
    )  # its parent strayed
    assert lab.verify("HEAD", base="HEAD~4").violations == ()
    with pytest.raises(UsageError, match="no commit in"):
        lab.verify("HEAD..HEAD~1")
    with pytest.raises(UsageError, match="different bases"):
        lab.verify("HEAD", "HEAD~1")


def test_checkpoints(lab: Lab, tmp_path: Path) -> None:
    lab.train(2)
    good, bad, other = (tmp_path / name for name in ("checkpoint-2", "checkpoint-4", "checkpoint-6"))
    lab.save(good / "model.safetensors")
    torch.save({"state": {0: torch.zeros(9)}}, good / "optimizer.pt")
    with torch.no_grad():
        lab.model[0].weight.view(-1)[[0, 1, 2]] += 1  # one of them is in the mask
    lab.save(bad / "model.safetensors")
    lab.model[2] = torch.nn.Linear(8, 3, bias=True).double()
    lab.model.append(torch.nn.Linear(2, 2, bias=False))
    del lab.model[0].bias
    lab.save(other / "model.safetensors")
    found = lab.verify(str(good), str(bad), str(other))
    assert found.checkpoints == 3
    assert sorted(found.violations) == [
        (str(bad), "0.weight", 2, "changed"),
        (str(other), "0.bias", 8, "missing"),
        (str(other), "0.weight", 2, "changed"),
        (str(other), "2.weight", 24, "shape"),
        (str(other), "3.weight", 4, "new"),
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no weights"):
        lab.verify(str(tmp_path / "empty"))


def run(lab: Lab, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["-C", str(lab.repo.worktree), "mask", "verify", *arguments], values={"HOME": str(lab.repo.worktree)})
    return code, *capsys.readouterr()


@pytest.mark.skipif(sys.platform == "win32", reason="the home of the test is set by HOME")
def test_the_command(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    flat = lab.model[2].weight.data.view(-1)
    lab.train(4)
    code, out, err = run(lab, capsys, "latest", "--run", "run.journal")
    assert code == 0 and "4 of 4 steps checked" in out and "Nothing outside the mask changed" in err
    lab.train(4, before=lambda step: flat[5].add_(1) if step == 2 else None)
    code, out, err = run(lab, capsys, "latest", "--run", "run.journal")
    assert code == 1
    assert "steps 6 to 8" in out and "2.weight" in out and "at least 1 value" in out
    assert "2.weight differs outside of mask" in err and "step 6" in err
    code, out, _ = run(lab, capsys, "latest", "--run", "run.journal", "--json")
    shown = json.loads(out)
    assert code == 1
    assert (shown["schema"], shown["sound"], shown["steps"]) == ("mgit.mask-verify/1", False, 8)
    assert [item["tensor"] for item in shown["violations"]] == ["2.weight"] * 3 + [""]  # the end of the run, too
    lab.save(lab.repo.worktree / "bot.safetensors")
    code, out, _ = run(lab, capsys, "latest", "bot.safetensors")
    assert code == 1 and "bot.safetensors" in out and "1 value" in out
