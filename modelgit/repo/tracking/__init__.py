"""The work tree and the history: what is tracked, what changed, commits of it, and moving it to another commit."""
