"""`python -m modelgit` is `mgit`."""

from modelgit.cli.main import run

run()
