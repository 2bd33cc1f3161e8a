"""Public conformance suites for extension points.  Empty until extension points are stable: the place is kept."""
