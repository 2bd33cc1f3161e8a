"""What a branch demands.  Empty until policies exist: their place among the layers is kept by the import rules."""
