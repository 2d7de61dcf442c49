"""Moving an image to another server: what to send, in which order, and who owns the image when."""
