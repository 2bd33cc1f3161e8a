"""What tests of extensions can use: small models and sources of bytes; conformance suites once those are stable."""
