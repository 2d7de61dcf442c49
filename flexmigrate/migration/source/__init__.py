"""A migration's source."""
