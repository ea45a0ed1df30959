"""`python -m server` is the command `embedding-server`."""

from server.cli import main

main()
