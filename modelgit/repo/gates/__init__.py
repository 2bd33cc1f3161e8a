"""The gate: suites, what they compare with, their verdicts, and what has broken since."""
