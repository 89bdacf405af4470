#!/usr/bin/env python3
"""A worker: `healthy` answers `/work`; `crawler` starts node, which starts a browser, and may run away itself."""

import argparse
import hashlib
import http.server
import os
import subprocess
import time

HERE = os.path.dirname(os.path.abspath(__file__))
STEP = 2 << 20  # bytes a step, a step every 20 ms: 100 MB/s


class Work(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        # A request's worth of work: some memory touched, some of it hashed.
        body = hashlib.sha256(bytes(bytearray(os.urandom(4096)) * 64)).hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def grow():
    held = []
    while True:
        held.append(bytearray(b"\1" * STEP))
        time.sleep(0.02)


def leave_the_tree():
    """What daemons do: fork, a session of its own, fork again. The first process waits, as if nothing had happened."""
    if os.fork():
        while True:
            time.sleep(60)
    os.setsid()
    if os.fork():
        os._exit(0)


def crawl(runaway, escape):
    if escape:
        leave_the_tree()
    node = subprocess.Popen(["node", os.path.join(HERE, "crawler.js"), runaway])
    if runaway == "worker":
        time.sleep(2)
        grow()
    node.wait()
    while True:  # the incident's worker went on as well
        time.sleep(60)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["healthy", "crawler"])
    parser.add_argument("--port", type=int)
    parser.add_argument("--runaway", default="none")
    parser.add_argument("--escape", action="store_true")
    args = parser.parse_args()
    if args.kind == "crawler":
        crawl(args.runaway, args.escape)
    http.server.ThreadingHTTPServer(("127.0.0.1", args.port), Work).serve_forever()


if __name__ == "__main__":
    main()
