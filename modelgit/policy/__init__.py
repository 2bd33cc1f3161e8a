"""What a branch demands: pure decisions over records."""
