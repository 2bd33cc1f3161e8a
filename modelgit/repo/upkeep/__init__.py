"""What lies on disk: what is needed, what it costs, checking, collecting, pruning and packing it again."""
