"""The files that the user sees: scanning, the stat cache, checking out, recovering."""
