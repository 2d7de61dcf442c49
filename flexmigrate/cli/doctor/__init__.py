"""``doctor``: looks at this host, and at what a server would need, and says what to do.

Nothing is changed and nothing is kept: what is opened is closed again, no image is written to, and
no lock is taken that a server could meet. What was found may be different a moment later.
"""
