"""Comparing two copies of an image by digests."""
