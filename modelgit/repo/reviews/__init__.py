"""Whether an update may land: checks of its content, who vouches for it, and the policies of the branch."""
