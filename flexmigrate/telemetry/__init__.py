"""Measured values, the status, the history of a migration, and how they are shown."""
