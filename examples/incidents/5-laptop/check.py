"""`check.py PORT`: exit code 0 when a service there says that it is fine. Loads next to nothing, as it is run often."""

import socket
import sys

with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=10) as connection:
    connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
    sys.exit(0 if b" 200 " in connection.recv(64) else 1)
