"""Three-way merges: plan, strategies, files."""
