"""Random days with a repository, against a dictionary of bytes."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

import modelgit
from modelgit.environment import Environment
from modelgit.errors import NothingToDo, RepositoryError
from modelgit.repo import Repository
from modelgit.repo.branches import create_tag, tags
from modelgit.repo.merges.merge import merge
from modelgit.repo.tracking.switch import restore
from modelgit.repo.tracking.undo import redo, undo
from modelgit.repo.upkeep.fsck import fsck
from modelgit.repo.upkeep.gc import collect

Tree = dict[str, bytes]
NAMES = ("w.a", "w.b", "w.c")
ROWS, COLUMNS = 6, 8


def file_of(weights: np.ndarray) -> bytes:
    import json
    import struct

    raw = [layer.astype("<f4").tobytes() for layer in weights]
    table, offset = {}, 0
    for name, data in zip(NAMES, raw, strict=True):
        table[name] = {"dtype": "F32", "shape": [ROWS, COLUMNS], "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    header = json.dumps(table).encode()
    return struct.pack("<Q", len(header)) + header + b"".join(raw)


def weights_of(data: bytes) -> np.ndarray:
    size = len(NAMES) * ROWS * COLUMNS
    return np.frombuffer(data[-4 * size :], "<f4").reshape(len(NAMES), ROWS, COLUMNS).copy()


@dataclass
class State:
    """Branches and tags as they point at commits, numbered in the order they were made."""

    branch: str
    branches: dict[str, int]
    tags: dict[str, int]

    def copy(self) -> State:
        return replace(self, branches=dict(self.branches), tags=dict(self.tags))


@dataclass
class Model:
    state: State
    commits: list[Tree] = field(default_factory=list)
    parents: list[tuple[int, ...]] = field(default_factory=list)
    undo: list[tuple[State, bool]] = field(default_factory=list)
    redo: list[tuple[State, bool]] = field(default_factory=list)
    work: Tree = field(default_factory=dict)

    @property
    def head(self) -> int:
        return self.state.branches[self.state.branch]

    def step(self, *, moves: bool) -> None:
        """Remember where we are, before an operation."""
        self.undo.append((self.state.copy(), moves))
        self.redo.clear()

    def ancestors(self, commit: int) -> set[int]:
        seen, pending = set(), [commit]
        while pending:
            at = pending.pop()
            if at not in seen:
                seen.add(at)
                pending += self.parents[at]
        return seen


class Days(RuleBasedStateMachine):
    branches = Bundle("branches")

    @initialize(target=branches)
    def start(self) -> str:
        self.folder = Path(tempfile.mkdtemp())
        self.worktree = self.folder / "work"
        self.worktree.mkdir()
        home = self.folder / "home"
        environment = Environment(
            home=home, config_home=home, cache_home=home, cwd=self.worktree, author="Ada <a@example.org>",
            overrides={"storage.threads": "1"},
        )  # fmt: skip
        self.repo: Repository = modelgit.init(self.worktree, environment=environment)
        random = np.random.default_rng(0)
        weights = random.standard_normal((3, ROWS, COLUMNS)).astype("<f4")
        (self.worktree / "w.safetensors").write_bytes(file_of(weights))
        (self.worktree / "notes").mkdir()
        (self.worktree / "notes" / "a.txt").write_text("zero")
        self.repo.track("w.safetensors")
        self.repo.track("notes")
        self.ids = [self.repo.commit("0").id]
        self.model = Model(State("main", {"main": 0}, {}))
        self.model.commits.append(self.tree())
        self.model.parents.append(())
        self.model.work = self.tree()
        self.numbers = 0
        return "main"

    def teardown(self) -> None:
        if not hasattr(self, "repo"):
            return
        try:
            # Whatever the day was like, it ends with a merge without and one with overlap.
            for theirs in ("1", "0"):
                self.work_apart_and_merge("0", theirs, len(self.ids))
                self.is_as_the_dictionary_says()
            report = fsck(self.repo)
            assert report.is_sound, report.findings
        finally:
            self.repo.close()
            shutil.rmtree(self.folder)

    def tree(self) -> Tree:
        return {
            path.relative_to(self.worktree).as_posix(): path.read_bytes()
            for path in self.worktree.rglob("*")
            if path.is_file() and ".mgit" not in path.parts
        }

    @property
    def clean(self) -> bool:
        return self.model.work == self.model.commits[self.model.head]

    # -- edits (rules may be called by rules)

    @rule(layer=st.integers(0, 2), place=st.integers(0, ROWS * COLUMNS - 1), amount=st.sampled_from([1e-3, 1.0, -2.0]))
    def edit_a_value(self, layer: int, place: int, amount: float) -> None:
        data = self.model.work.get("w.safetensors")
        if data is None:
            return
        weights = weights_of(data)
        weights[layer].flat[place] += np.float32(amount)
        self.write("w.safetensors", file_of(weights))

    @rule(layer=st.integers(0, 2), seed=st.integers(0, 5))
    def edit_a_tensor(self, layer: int, seed: int) -> None:
        data = self.model.work.get("w.safetensors")
        if data is None:
            return
        weights = weights_of(data)
        weights[layer] += 0.01 * np.random.default_rng(seed).standard_normal((ROWS, COLUMNS)).astype("<f4")
        self.write("w.safetensors", file_of(weights))

    @rule(name=st.sampled_from(["a", "b", "c"]), text=st.sampled_from(["one", "two", "three"]))
    def edit_a_note(self, name: str, text: str) -> None:
        self.write(f"notes/{name}.txt", text.encode())

    @rule(name=st.sampled_from(["a", "b", "c"]))
    def remove_a_note(self, name: str) -> None:
        path = f"notes/{name}.txt"
        if self.model.work.pop(path, None) is not None:
            (self.worktree / path).unlink()

    def write(self, path: str, data: bytes) -> None:
        target = self.worktree / path
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(data)
        self.model.work[path] = data

    # -- verbs

    @rule()
    def commit(self) -> None:
        if self.clean:
            with pytest.raises(NothingToDo):
                self.repo.commit("nothing")
            return
        made = self.repo.commit(f"commit {len(self.ids)}")
        self.record(made.id, dict(self.model.work), (self.model.head,), moves=False)

    def record(self, commit: object, tree: Tree, parents: tuple[int, ...], *, moves: bool) -> None:
        assert tuple(self.repo.parents_of(commit)) == tuple(self.ids[parent] for parent in parents)
        self.model.step(moves=moves)
        self.ids.append(commit)
        self.model.commits.append(tree)
        self.model.parents.append(parents)
        self.model.state.branches[self.model.state.branch] = len(self.ids) - 1

    @rule(target=branches)
    def new_branch(self) -> str:
        self.numbers += 1
        name = f"b{self.numbers}"
        self.repo.switch(name, create=True)  # edits come along
        self.model.step(moves=False)
        self.model.state.branches[name] = self.model.head
        self.model.state.branch = name
        return name

    @rule(name=branches)
    def switch(self, name: str) -> None:
        if name not in self.model.state.branches:
            with pytest.raises(RepositoryError):
                self.repo.switch(name)
            return
        old, new = self.model.head, self.model.state.branches[name]
        if not self.moved(old, new, lambda: self.repo.switch(name)):
            return
        if name != self.model.state.branch:
            self.model.step(moves=self.model.commits[old] != self.model.commits[new])
            self.model.state.branch = name

    def moved(self, old: int, new: int, act) -> bool:
        """Do what moves the files between two commits, unless edits are in its way: then it must refuse."""
        before, after, work = self.model.commits[old], self.model.commits[new], self.model.work
        touched = {path for path in {*before, *after} if before.get(path) != after.get(path)}
        # A file that is already as it shall be is in nobody's way.
        if any(work.get(path) not in (before.get(path), after.get(path)) for path in touched):
            with pytest.raises(RepositoryError, match="would overwrite"):
                act()
            return False
        act()
        for path in touched:
            if path in after:
                work[path] = after[path]
            else:
                work.pop(path, None)
        return True

    @rule(name=branches)
    def merge(self, name: str) -> None:
        model = self.model
        if name not in model.state.branches:
            return
        ours, theirs = model.head, model.state.branches[name]
        if not self.clean:
            return
        if theirs in model.ancestors(ours):
            assert merge(self.repo, name, strategy="average").kind == "up-to-date"
            return
        common = model.ancestors(ours) & model.ancestors(theirs)
        texts = {path for side in (ours, theirs) for path in model.commits[side] if path.startswith("notes/")}
        base = max(common)
        conflict = any(
            len({model.commits[at].get(path) for at in (base, ours, theirs)}) == 3
            or (
                model.commits[ours].get(path) != model.commits[theirs].get(path)
                and model.commits[base].get(path)
                not in (model.commits[ours].get(path), model.commits[theirs].get(path))
            )
            for path in texts
        )
        if conflict:
            return
        result = merge(self.repo, name, strategy="average", fast_forward=True)
        if result.kind == "fast-forward":
            assert ours in model.ancestors(theirs)
            model.step(moves=model.commits[ours] != model.commits[theirs])
            model.state.branches[model.state.branch] = theirs
            model.work = dict(model.commits[theirs])
            return
        assert result.kind == "merged"
        tree = self.tree()
        bests = [at for at in common if not any(at != o and at in model.ancestors(o) for o in common)]
        if len(bests) == 1:
            self.check_merge(bests[0], ours, theirs, tree)
        assert result.commit is not None
        self.record(result.commit.id, tree, (ours, theirs), moves=model.commits[ours] != tree)
        model.work = dict(tree)

    @rule(
        ours=st.sampled_from(["", "0", "1", "note"]),
        theirs=st.sampled_from(["0", "1", "2", "note"]),
        seed=st.integers(0, 9),
    )
    def work_apart_and_merge(self, ours: str, theirs: str, seed: int) -> None:
        """A side branch with an edit, an edit here or none, and both together."""
        here = self.model.state.branch
        if not self.clean:
            self.commit()
        side = self.new_branch()
        self.edit(theirs, seed)
        self.commit()
        self.switch(here)
        self.edit(ours, seed + 1)
        self.commit()
        self.merge(side)

    def edit(self, what: str, seed: int) -> None:
        if what == "note":
            self.edit_a_note("a", f"note {seed}")
        elif what:
            self.edit_a_tensor(int(what), seed)

    def check_merge(self, base: int, ours: int, theirs: int, tree: Tree) -> None:
        """What one side alone changed is that side's; what both changed lies between them or is their average."""
        sides = [self.model.commits[at] for at in (base, ours, theirs)]
        for path in {path for side in (*sides, tree) for path in side if path.startswith("notes/")}:
            b, o, t = (side.get(path) for side in sides)
            assert tree.get(path) == (t if o == b else o)
        b, o, t, found = (weights_of(side["w.safetensors"]) for side in (*sides, tree))
        for layer in range(3):
            if o[layer].tobytes() == b[layer].tobytes():
                assert found[layer].tobytes() == t[layer].tobytes()
            elif t[layer].tobytes() == b[layer].tobytes():
                assert found[layer].tobytes() == o[layer].tobytes()
            else:
                low, high = np.minimum(o[layer], t[layer]), np.maximum(o[layer], t[layer])
                slack = np.float32(1e-5) * (1 + np.abs(high))
                assert (found[layer] >= low - slack).all()
                assert (found[layer] <= high + slack).all()

    @rule(number=st.integers(0, 2))
    def tag(self, number: int) -> None:
        name = f"v{number}"
        if self.model.state.tags.get(name) == self.model.head:
            create_tag(self.repo, name, force=True)  # changes nothing, publishes nothing
            return
        create_tag(self.repo, name, force=True)
        self.model.step(moves=False)
        self.model.state.tags[name] = self.model.head

    @precondition(lambda self: self.model.state.tags)
    @rule(data=st.data())
    def restore_from_a_tag(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.state.tags)))
        tree = self.model.commits[self.model.state.tags[name]]
        path = data.draw(st.sampled_from(sorted(tree)))
        restore(self.repo, [path], source=name)
        self.model.work[path] = tree[path]

    @rule()
    def restore_everything(self) -> None:
        restore(self.repo, ["."])
        self.model.work.update(self.model.commits[self.model.head])

    @rule()
    def undo(self) -> None:
        self.go(self.model.undo, self.model.redo, lambda: undo(self.repo))

    @rule()
    def redo(self) -> None:
        self.go(self.model.redo, self.model.undo, lambda: redo(self.repo))

    def go(self, source: list, target: list, act) -> None:
        if not source:
            if target is self.model.undo or len(self.ids) == 1:
                return  # nothing to redo; undoing the very first commit is tested elsewhere
            return
        state, moves = source[-1]
        old = self.model.head
        new = state.branches[state.branch]
        if moves:
            if not self.moved(old, new, act):
                return
        else:
            act()
        source.pop()
        target.append((self.model.state.copy(), moves))
        self.model.state = state.copy()

    @rule()
    def collect_garbage(self) -> None:
        collect(self.repo)

    @rule()
    def collect_and_prune(self) -> None:
        collect(self.repo, prune_now=True)
        self.model.undo.clear()
        self.model.redo.clear()
        with pytest.raises(NothingToDo):
            undo(self.repo)

    @rule()
    def another_process(self) -> None:
        self.repo.close()
        self.repo = modelgit.open(self.worktree, environment=self.repo.environment)

    # -- what always holds

    @invariant()
    def is_as_the_dictionary_says(self) -> None:
        if not hasattr(self, "repo"):
            return
        view = self.repo.view()
        state = self.model.state
        assert view.branch == state.branch
        heads = {ref[6:]: commit for ref, commit in view.refs.items() if ref.startswith("heads/")}
        assert heads == {name: self.ids[at] for name, at in state.branches.items()}
        assert tags(self.repo) == {name: self.ids[at] for name, at in state.tags.items()}
        assert self.tree() == self.model.work
        assert self.repo.status().is_clean == self.clean


Days.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestDays = Days.TestCase
