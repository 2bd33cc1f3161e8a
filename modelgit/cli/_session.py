"""What one invocation carries: surroundings, output, progress and the repository, opened when it is first needed."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from modelgit.cli._output import Output
from modelgit.cli._progress import TerminalProgress
from modelgit.errors import UsageError
from modelgit.progress import SILENT

if TYPE_CHECKING:
    from modelgit.environment import Environment
    from modelgit.progress import Progress
    from modelgit.repo.repository import Repository

__all__ = ["Session"]


class Session:
    """Passed to every command as click's context object."""

    def __init__(self, environment: Environment, output: Output, *, debug: bool = False) -> None:
        self.environment = environment
        self.output = output
        self.debug = debug
        self.no_progress = False
        self._bars: TerminalProgress | None = None
        self._repository: Repository | None = None
        self._closing = contextlib.ExitStack()

    @property
    def repository(self) -> Repository:
        """The repository around the current directory.  Raises RepositoryError when there is none."""
        if self._repository is None:
            from modelgit.repo.repository import Repository

            self._repository = self._closing.enter_context(Repository.open(".", environment=self.environment))
        return self._repository

    @property
    def progress(self) -> Progress:
        """What long work reports to."""
        if self.no_progress or self.output.quiet:
            return SILENT
        if self._bars is None:
            self._bars = TerminalProgress(self.output)
            self._closing.callback(self._bars.close)
        return self._bars

    def change_directory(self, directory: str) -> None:
        """Act as if started in `directory`.  Raises UsageError when it is none."""
        target = self.environment.cwd / directory
        if not target.is_dir():
            raise UsageError(f"no directory {directory}", hint=f"`mkdir -p {directory}` makes it")
        self.environment = replace(self.environment, cwd=target.resolve())

    def path(self, text: str) -> Path:
        """A path that was typed, seen from the current directory."""
        return self.environment.cwd / text

    def tree_path(self, text: str) -> str:
        """A path or pattern that was typed, seen from the repository's root.

        Raises UsageError when it leaves the repository.
        """
        from modelgit.repo.tracking.tree import relative_path

        return relative_path(self.repository, text)

    def cancel(self) -> None:
        """Tell worker threads that the user wants to stop."""
        if self._bars is not None:
            self._bars.cancel()

    def close(self) -> None:
        """Close what was opened, last first, and pass on what the settings complained about."""
        if self._repository is not None:
            loaded = vars(self._repository).get("loaded_settings")
            for warning in loaded.warnings if loaded is not None else ():
                self.output.warn(warning)
        self._closing.close()
