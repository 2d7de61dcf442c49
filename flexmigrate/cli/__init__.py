"""The command line: what is typed becomes a frozen configuration, and that is carried out."""
