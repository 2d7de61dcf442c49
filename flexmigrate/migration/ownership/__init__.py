"""Ownership of images: the journal, the rules, and the commands that decide it by hand."""
