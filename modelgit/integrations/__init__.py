"""Training loops and other people's tools."""
