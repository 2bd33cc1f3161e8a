"""The demo: real weights and real labelled text, played through the commands that a user would type."""
