"""Which byte ranges of a checkpoint file are which tensors; nothing is ever executed."""
