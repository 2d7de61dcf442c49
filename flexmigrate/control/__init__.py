"""The operator's socket: its grammar, the server behind it, and the command line's call to it."""
