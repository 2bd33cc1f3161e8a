"""Suites, metrics, the gate."""
