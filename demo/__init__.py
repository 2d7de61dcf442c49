"""``make demo``: a filesystem moves from one server to another while a client writes to it.

Everything runs as a user would run it: `flexmigrate` in processes of its own, and a client that
shares no code with it. What the demonstration borrows from the tests (`tests/support`) is that
client, its record, and the way to start processes.
"""
