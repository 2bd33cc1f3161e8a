"""kill -9 at every mutating system call of a command: the old state or the new one, never a third."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

pytestmark = pytest.mark.crash
COMMANDS = ("commit", "commit-from", "commit-borrowed", "commit-density", "switch", "merge")
KILL = "signal=SIGKILL"
_MOST = 110  # points per command; more are sampled evenly
_MOST_HOUSEKEEPING = 40


def evenly(points: list, most: int) -> list:
    return points if len(points) <= most else [points[number * len(points) // most] for number in range(most)]


def at_all(hit: Callable, scene, cases: list) -> list:
    """Two at a time; every failure is named, not just the first."""
    failures = []
    outcomes = []

    def one(case: list) -> object:
        try:
            return hit(scene, case)
        except Exception as error:  # noqa: BLE001  (collected and raised below)
            failures.append(f"{scene.command} {[(p.call, p.number, how) for p, how in case]}: {error!r}"[:600])
            return None

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(one, cases))
    assert not failures, f"{len(failures)} of {len(cases)} points failed:\n" + "\n".join(failures[:12])
    return outcomes


@pytest.mark.parametrize("command", COMMANDS)
def test_a_kill_at_any_call_leaves_the_old_or_the_new_state(scene_of: Callable, hit: Callable, command: str) -> None:
    scene = scene_of(command)
    assert len(scene.points) > 30
    assert {point.call for point in scene.points} >= {"openat", "write", "fsync", "rename", "link", "unlink"}
    ran = at_all(hit, scene, [[(point, KILL)] for point in evenly(scene.points, _MOST)])
    killed = [item for item in ran if item.code != 0]
    assert len(killed) >= 0.95 * len(ran), "the counts of calls did not repeat: hardly anything was killed"


@pytest.mark.parametrize("command", ["repack", "prune"])
def test_a_kill_while_keeping_house_loses_nothing(scene_of: Callable, hit: Callable, command: str) -> None:
    scene = scene_of(command)
    assert {point.call for point in scene.points} >= {"write", "fsync", "rename", "link", "unlink"}
    ran = at_all(hit, scene, [[(point, KILL)] for point in evenly(scene.points, _MOST_HOUSEKEEPING)])
    assert len([item for item in ran if item.code != 0]) >= 0.9 * len(ran)


@pytest.mark.parametrize("command", ["commit-from", "commit-density", "switch", "merge"])
def test_recovery_can_be_killed_too(scene_of: Callable, hit: Callable, command: str) -> None:
    scene = scene_of(command)
    late = [point for point in scene.points if point.call in ("rename", "unlink", "fsync")]
    at_all(hit, scene, [[(second, KILL), (first, KILL)] for first, second in pairwise(evenly(late, 11))])
