"""`python -m server.frontends CHANNEL LISTENER [METRICS]` is a front end; they are numbers of open files."""

import socket
import sys

from server.frontends.front_end import run

stream, *listeners = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
run(stream, *listeners)
