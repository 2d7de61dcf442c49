"""The log: what is shown, how a line looks, and how it is written.

``settings`` is what an operator can choose, ``layouts`` makes the line of an event, ``observer``
writes it. Nothing is imported here, since a command line is read without Twisted.
"""
