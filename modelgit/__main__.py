"""`python -m modelgit` is `mgit`."""

from modelgit.cli.start import run

run()
