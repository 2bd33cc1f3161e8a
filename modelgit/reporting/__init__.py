"""Diffs and verdicts as text blocks, HTML and Markdown."""
