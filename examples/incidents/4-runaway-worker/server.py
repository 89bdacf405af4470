#!/usr/bin/env python3
"""A web server with two workers: `healthy` answers requests, `crawler` drives a browser.

    server.py [--host ADDRESS] [--port N] [--worker-port N] --runaway none|worker|node|leaf [--escape] [--crawler "WORD…"]

`/work` is passed on to the healthy worker. `--crawler` is what the crawler's command line begins with: nothing before
Plimsoll, `plimsoll run -m 700m --` with it. That prefix is the whole difference.
"""

import argparse
import http.client
import http.server
import os
import shlex
import subprocess
import sys
import threading

HERE = os.path.dirname(os.path.abspath(__file__))


def start_workers(args):
    worker = [sys.executable, os.path.join(HERE, "worker.py")]
    healthy = subprocess.Popen([*worker, "healthy", "--port", str(args.worker_port)])
    escape = ["--escape"] if args.escape else []
    crawler = subprocess.Popen([*shlex.split(args.crawler), *worker, "crawler", "--runaway", args.runaway, *escape])
    threading.Thread(target=tell, args=(crawler,), daemon=True).start()
    return healthy


def tell(crawler):
    print(f"the crawler ended with {crawler.wait()}", flush=True)  # 137 is the memory line, 124 the time limit


def handler(port):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            try:
                worker = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                worker.request("GET", self.path)
                answer = worker.getresponse()
                status, body = answer.status, answer.read()
            except OSError as why:
                status, body = 502, f"the worker does not answer: {why}".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    return Handler


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--worker-port", type=int, default=8001)
    parser.add_argument("--runaway", default="none")
    parser.add_argument("--escape", action="store_true")
    parser.add_argument("--crawler", default="")
    args = parser.parse_args()
    start_workers(args)
    http.server.ThreadingHTTPServer((args.host, args.port), handler(args.worker_port)).serve_forever()


if __name__ == "__main__":
    main()
