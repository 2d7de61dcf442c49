"""The display of a server and its migration on a terminal, or in a pipe."""
