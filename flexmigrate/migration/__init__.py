"""Migration of an image to another server: the transfer, the handover, and the ownership."""
