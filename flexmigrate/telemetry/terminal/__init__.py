"""What is shown on a terminal, or written into a pipe, of a server and its migration."""
