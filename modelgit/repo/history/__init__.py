"""Questions to the history: what changed, when, by which commit, and what it did to the model."""
