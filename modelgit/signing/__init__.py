"""Signatures over canonical bytes."""
