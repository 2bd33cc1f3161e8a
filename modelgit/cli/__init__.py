"""The command line: the only layer that prints, exits, and captures arguments and environment."""
