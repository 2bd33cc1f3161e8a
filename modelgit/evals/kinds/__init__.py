"""Kinds of tests, one module each."""
