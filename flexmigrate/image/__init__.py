"""The bytes of an image: reads, writes, holes, flushes, and what changed; nothing of NBD."""
