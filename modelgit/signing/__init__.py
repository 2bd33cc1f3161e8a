"""ssh signatures over statements: made and checked by `ssh-keygen -Y`, believed for keys that are listed."""
