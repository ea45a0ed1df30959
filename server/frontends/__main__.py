"""`python -m server.frontends CHANNEL LISTENER` is a front end; both are numbers of open files."""

import socket
import sys

from server.frontends.front_end import run

stream, listener = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
run(stream, listener)
