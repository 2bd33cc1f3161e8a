"""`mgit track`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from modelgit.cli._format import plural, size
from modelgit.cli._options import command, json_option, pass_session
from modelgit.cli._output import Output, bold, plain_data
from modelgit.cli._session import Session
from modelgit.errors import UsageError
from modelgit.objects.paths import is_within
from modelgit.reporting.wording import amount, printable, shortened

if TYPE_CHECKING:
    from modelgit.formats.layouts import TrackedModel

__all__ = ["track"]

_LISTED = 8
_BASE = 60


@command("track", example="mgit track models/bot")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option(
    "--training-state",
    is_flag=True,
    help="PATH (the tracked directories) holds optimizer states and the like: record them beside the model.",
)
@click.option("--opaque", is_flag=True, help="Record the file PATH byte for byte, without a look at what it is.")
@json_option
@pass_session
def track(session: Session, paths: tuple[str, ...], training_state: bool, opaque: bool, as_json: bool) -> None:
    """Record each PATH (a checkpoint's directory, or a file) from the next commit on; without PATH, list what is.

    The paths are written into mgit.toml, which is recorded with the model.  Optimizer states and the like are left
    out, as `track.ignore` says, unless --training-state records them: beside the model, never as part of it, and for
    as long as [retention] says.
    """
    from modelgit.repo.tracking.track import track as start_tracking

    repo = session.repository
    if opaque and (training_state or not paths):
        raise UsageError("--opaque is for files of their own", hint="`mgit track --opaque FILE`")
    if training_state:
        _track_training(session, paths, as_json=as_json)
        return
    if not paths:
        tracked = repo.settings.track.paths
        if as_json:
            session.output.json("mgit.track/1", {"paths": list(tracked), "ignore": list(repo.settings.track.ignore)})
            return
        session.output.lines([[path] for path in tracked])
        session.output.lines([[path, "  (training state)"] for path in repo.settings.track.training_state])
        if not tracked:
            session.output.say("nothing is tracked yet")
        return
    found = [start_tracking(repo, path, opaque=opaque) for path in paths]
    if as_json:
        session.output.json("mgit.track/1", {"added": plain_data(found), "paths": list(repo.settings.track.paths)})
        return
    for item in found:
        _say(session.output, item, repo.settings.track.training_state)


def _track_training(session: Session, paths: tuple[str, ...], *, as_json: bool) -> None:
    from modelgit.repo.tracking.track import track_training

    repo, output = session.repository, session.output
    places = paths or tuple(
        str(repo.worktree / path) for path in repo.settings.track.paths if (repo.worktree / path).is_dir()
    )
    if not places:
        raise UsageError(
            "no tracked directory has training state beside its model",
            hint="`mgit track --training-state PATH` names where it lies",
        )
    found = [track_training(repo, place) for place in places]
    if as_json:
        output.json(
            "mgit.track/1",
            {"added": [{"path": path, "files": files} for path, files in found]}
            | {"training_state": list(repo.settings.track.training_state)},
        )
        return
    for path, files in found:
        what = f"{plural(len(files), 'file')}, {size(sum(files.values()))}" if files else "nothing there yet"
        output.say("Tracking training state in ", bold(path), f": {what}")
        _list(output, "files", tuple(files))


def _say(output: Output, found: TrackedModel, training_state: Sequence[str]) -> None:
    words = [f"{found.title} of {shortened(printable(found.base_model), _BASE)}" if found.base_model else found.title]
    if found.tensors:
        words += [plural(found.tensors, "tensor"), f"{amount(found.parameters)} parameters", found.dtypes]
    if found.shards > 1:
        words.append(plural(found.shards, "shard"))
    elif len(found.files) != 1:
        words.append(plural(len(found.files), "file"))
    output.say("Tracking ", bold(found.path), f": {', '.join([*words, size(found.size_bytes)])}")
    state = {path for path in found.ignored if _is_training_state(path)}
    beside = {path for path in state if any(is_within(path.rstrip("/"), place) for place in training_state)}
    _list(output, "ignored", tuple(path for path in found.ignored if path not in beside))
    _list(output, "beside", tuple(sorted(beside)), "recorded as training state")
    if state - beside:
        output.say(f"hint: `mgit track --training-state {shlex.quote(found.path)}` records the state of training, too")
    reasons = dict(found.notes)
    _list(output, "not read", tuple(path for path in found.opaque if path not in reasons), "recorded byte for byte")
    for path, reason in found.notes:
        _list(output, "not read", (path,), f"{reason}: recorded byte for byte")
    _list(output, "apart", found.apart, "not what the model is loaded from")
    _list(output, "skipped", found.links, "symbolic links are not followed")
    _list(output, "skipped", found.special, "not plain files")


def _is_training_state(path: str) -> bool:
    from modelgit.config.schema import TRAINING_NAMES
    from modelgit.formats.listing import matching_pattern

    return matching_pattern(path.rstrip("/"), TRAINING_NAMES, directory=path.endswith("/")) is not None


def _list(output: Output, title: str, names: tuple[str, ...], reason: str = "") -> None:
    if names:
        more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        output.say(f"  {title:<8}  {', '.join(names[:_LISTED])}{more}" + (f"  ({reason})" if reason else ""))
