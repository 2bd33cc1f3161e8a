"""Packs, the root, operations: durable objects without a word about tensors' meaning."""
