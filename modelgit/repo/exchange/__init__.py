"""Other repositories and places: remotes, clones, borrowed objects and published models."""
