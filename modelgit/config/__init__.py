"""Settings: typed schema, layers, edits that keep comments."""
