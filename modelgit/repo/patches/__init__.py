"""Sparse patches: Fisher estimates, masks, and dense changes made sparse without training."""
