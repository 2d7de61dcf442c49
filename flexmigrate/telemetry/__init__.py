"""Measured values: a server's status, a migration's history, and their display."""
