"""``doctor``: checks of this host, and of what a server needs, with advice.

Nothing is changed: what is opened is closed again, no image is written to, and
no lock is taken that a server could meet. A finding may be outdated a moment later.
"""
