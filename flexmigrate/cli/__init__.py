"""The command line: it is parsed into a frozen configuration, which is then carried out."""
