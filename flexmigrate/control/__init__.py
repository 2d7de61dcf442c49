"""The operator's socket: its grammar, its server, and the client that the command line uses."""
