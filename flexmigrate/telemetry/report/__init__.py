"""Reports of migrations that are over, as a page to look at or as data: text, made of values."""
