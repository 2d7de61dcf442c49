"""Who owns an image: the journal, the rules, and the commands that settle it by hand."""
