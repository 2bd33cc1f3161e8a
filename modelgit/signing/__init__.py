"""Signatures over canonical bytes.  Empty until commits are signed: their place among the layers is kept."""
