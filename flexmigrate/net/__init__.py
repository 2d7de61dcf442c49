"""Networking: addresses, access lists, TLS, and transports that move bytes without copying them."""
