"""The log: its settings, the layouts of its lines, and the observer that writes them.

``settings`` is what an operator can choose, ``layouts`` makes the line of an event, ``observer``
writes it. Nothing is imported here, since a command line is read without Twisted.
"""
