"""Serving exports to NBD clients: Twisted protocols and factories over the sans-IO wire and an
image.
"""
