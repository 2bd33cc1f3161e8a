"""Merging checkpoints that are in no repository: files and directories in, files and directories out."""
