"""A disk that is full or broken at any call: a declared error, the old state or the new one, and work goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = pytest.mark.crash
COMMANDS = ("commit", "switch", "merge")
REFUSED = 9
ERRORS = {
    "openat": "ENOSPC", "write": "ENOSPC", "mkdir": "ENOSPC", "rename": "ENOSPC", "link": "ENOSPC", "fsync": "EIO",
    "unlink": "EIO", "rmdir": "EIO", "chmod": "EIO",
}  # fmt: skip


def spread(points: list, most: int) -> list:
    """Up to `most` points, every kind of call among them."""
    kinds: dict[str, list] = {}
    for point in points:
        kinds.setdefault(point.call, []).append(point)
    share = max(2, most // len(kinds))
    return [
        group[number * len(group) // min(share, len(group))]
        for group in kinds.values()
        for number in range(min(share, len(group)))
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_an_error_of_the_disk_is_a_sentence_and_changes_nothing_by_half(
    scene_of: Callable, hit: Callable, command: str
) -> None:
    scene = scene_of(command)
    points = spread([point for point in scene.points if point.call in ERRORS], 24)
    failures = []

    def one(point) -> object:
        try:
            ran = hit(scene, [(point, f"error={ERRORS[point.call]}")])
            # An unlink or a cache that fails may be passed over; anything else is refused in a sentence.
            assert ran.code in (0, REFUSED), ran.err[-1500:]
            if ran.code == REFUSED:
                assert ran.out.startswith("refused RepositoryError: "), ran.out
                assert not ran.err, ran.err
        except Exception as error:  # noqa: BLE001  (collected and raised below)
            failures.append(f"{command} {point.call} {point.number}: {error!r}"[:1500])
            return None
        return ran

    with ThreadPoolExecutor(2) as pool:
        ran = list(pool.map(one, points))
    assert not failures, f"{len(failures)} of {len(points)} points failed:\n" + "\n".join(failures)
    assert sum(item is not None and item.code == REFUSED for item in ran) > len(points) // 2
