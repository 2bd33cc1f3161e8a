"""What a branch demands of those who push to it: pure decisions over records, for clients and servers alike."""
