"""Choose an encoding, apply it, materialise a tensor."""
