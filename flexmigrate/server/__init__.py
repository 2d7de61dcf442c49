"""The NBD server: Twisted protocols and factories that connect ``wire`` with an
image.
"""
