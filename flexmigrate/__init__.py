"""Serve a disk image as a network block device, and move it to another host while it is used.

This file imports nothing: ``flexmigrate status`` has to answer before Twisted could be imported.
"""

__version__ = "0.1.0"
