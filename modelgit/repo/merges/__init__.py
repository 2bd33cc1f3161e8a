"""Merges, and what is made of them: picks, reverts, rebases, searches and merges of loose files."""
