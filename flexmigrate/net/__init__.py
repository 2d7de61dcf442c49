"""The network: addresses, who may connect, and transports that move bytes without copying them."""
