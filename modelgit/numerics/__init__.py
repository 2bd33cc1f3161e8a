"""Pure array mathematics: bits, planes, positions, statistics."""
