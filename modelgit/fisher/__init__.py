"""Fisher information: estimates, masks, what a change does to behaviour."""
