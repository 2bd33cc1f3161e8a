"""Bytes to records and back, one codec a file."""
