"""Comparison of two copies of an image by digests."""
