"""NBD as pure values and functions: bytes in, values out, and back; no I/O, clock or Twisted."""
