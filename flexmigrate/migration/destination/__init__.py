"""A migration's destination."""
