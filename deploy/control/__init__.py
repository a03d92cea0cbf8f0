"""The driver's HTTP server, and the commands that ask it."""
