"""The NBD protocol as values and pure functions: bytes in, values out. No I/O, clock or Twisted."""
