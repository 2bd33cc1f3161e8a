"""Moving objects and refs between repositories."""
