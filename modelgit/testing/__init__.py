"""Public conformance suites and strategies for extension points."""
