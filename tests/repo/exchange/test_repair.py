"""`fetch --repair`: good copies replace damaged ones, and nothing sound is lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelgit.errors import MgitError
from modelgit.repo import Repository
from modelgit.repo.exchange.remote import add_remote
from modelgit.repo.exchange.repair import repair
from modelgit.repo.exchange.sync import push
from modelgit.repo.upkeep.fsck import fsck


def _shared(bot: Repository, files, tmp_path: Path) -> list[dict[str, str]]:
    """Three commits, the first two of them on a remote; the digests of the files of each."""
    states = []
    for seed in range(3):
        (bot.worktree / "bot.safetensors").write_bytes(files.of_arrays(files.floats(seed, rows=200)))
        bot.commit(f"state {seed}")
        states.append(files.digests(bot.worktree))
        if seed == 1:
            add_remote(bot, "origin", f"file://{tmp_path / 'origin.mgit'}")
            push(bot)
    return states


def _flip(pack: Path, position: int) -> None:
    data = bytearray(pack.read_bytes())
    data[position] ^= 1
    pack.chmod(0o644)
    pack.write_bytes(data)


def _packs_by_age(repo: Repository) -> list[Path]:
    return sorted((repo.paths.directory / "packs").iterdir(), key=lambda path: path.stat().st_mtime_ns)


def _fresh(repo: Repository) -> Repository:
    """As another process would see it."""
    repo.close()
    return Repository.open(repo.worktree, environment=repo.environment)


@pytest.mark.parametrize("where", ["record", "index", "gone"])
def test_a_damaged_pack_is_replaced(bot: Repository, files, tmp_path: Path, where: str) -> None:
    states = _shared(bot, files, tmp_path)
    second = [pack for pack in _packs_by_age(bot) if pack.stat().st_size > 10_000][1]
    if where == "gone":
        os.unlink(second)
    else:
        _flip(second, 200 if where == "record" else second.stat().st_size - 70)
    bot = _fresh(bot)
    assert not fsck(bot).is_sound
    report = repair(bot, "origin")
    assert report.fetched > 0
    assert report.packs == (() if where == "gone" else (second.name,))
    bot = _fresh(bot)
    assert fsck(bot).is_sound
    for number, state in enumerate(states):
        bot.switch(f"main~{2 - number}", detach=True)
        assert files.digests(bot.worktree) == state


def test_what_is_sound_in_a_damaged_pack_is_kept_though_no_remote_has_it(
    bot: Repository, files, tmp_path: Path
) -> None:
    states = _shared(bot, files, tmp_path)
    last = [pack for pack in _packs_by_age(bot) if pack.stat().st_size > 10_000][-1]
    footer_padding = last.read_bytes().rfind(b"KCAPTIGM")
    _flip(last, footer_padding - 41)  # inside the footer: every record is sound, the index cannot be found
    bot = _fresh(bot)
    with pytest.raises(MgitError):
        repair(bot, "origin")
    assert last.exists()  # nothing was taken away
    _flip(last, footer_padding - 41)
    _flip(last, 9)  # the header: the name does not match any more, everything else does
    bot = _fresh(bot)
    with pytest.raises(MgitError):
        repair(bot, "origin")
    _flip(last, 9)
    bot = _fresh(bot)
    assert fsck(bot).is_sound
    assert files.digests(bot.worktree) == states[-1]


def test_objects_beside_the_damage_are_salvaged(bot: Repository, files, tmp_path: Path) -> None:
    states = _shared(bot, files, tmp_path)
    push(bot)  # the remote has everything, but what is sound must not be fetched again
    second = [pack for pack in _packs_by_age(bot) if pack.stat().st_size > 10_000][1]
    _flip(second, 200)
    bot = _fresh(bot)
    report = repair(bot, "origin")
    assert report.salvaged > report.fetched > 0
    bot = _fresh(bot)
    assert fsck(bot).is_sound
    assert files.digests(bot.worktree) == states[-1]


def test_nothing_to_repair(bot: Repository, files, tmp_path: Path) -> None:
    _shared(bot, files, tmp_path)
    report = repair(bot, "origin")
    assert (report.packs, report.fetched, report.salvaged) == ((), 0, 0)
