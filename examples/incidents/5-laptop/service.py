#!/usr/bin/env python3
"""One of the laptop's services: `service.py ROLE --port N`.

| role | a request | what it keeps in memory |
|---|---|---|
| agent | GET /answer?q=TEXT&session=ID | a graph of $GRAPH a request, up to $CACHE; asked to (SIGUSR1) it keeps less |
| knowledge | GET /embed?text=TEXT | its model, $MODEL |
| vector | GET /search?id=N | its index, $CACHE |
| auth | GET /token?user=NAME | nothing: any replica answers |
| session | PUT and GET /session/ID | nothing: redis has it |
| case | PUT and GET /case/ID | nothing: redis has it |
| evidence | PUT and GET /evidence/ID | nothing: files below $EVIDENCE have it |
| worker | jobs from the list `jobs` in redis, answers to `results` | nothing: redis has a job until it is done |
| desktop | none: it stands for system, browser and IDE | $CACHE |

All answer GET /health. What goes wrong is switched on over HTTP, and off with 0:

    POST /fault?leak=64m        bytes a second
    POST /fault?burn=2          threads that only burn processor time
    POST /fault?slow_exit=60s   so long it takes to end when it is asked to
    POST /fault?crash=3         it ends at once, with this code
"""

import argparse
import array
import hashlib
import hmac
import http.server
import json
import mmap
import os
import random
import signal
import socket
import sys
import threading
import time
import urllib.parse

MIB = 1 << 20
UNITS = {"k": 1 << 10, "m": MIB, "g": 1 << 30}


def size(text: str) -> int:
    return int(float(text[:-1]) * UNITS[text[-1]]) if text[-1:] in UNITS else int(text)


def hold(count: int) -> mmap.mmap:
    """That many bytes of memory, all of them there; closing it gives them back."""
    return mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)


class Redis:
    """A connection to redis. When it breaks it is made anew, and what is asked twice then must not matter."""

    def __init__(self, port: int = 0, again: bool = True) -> None:
        self.port = port or int(os.environ.get("REDIS_PORT", "7800"))
        self.again = again
        self.lock = threading.Lock()
        self.stream = None

    def ask(self, *words: str):
        with self.lock:
            for is_last in (False, True) if self.again else (True,):
                try:
                    if self.stream is None:
                        self.stream = socket.create_connection(("127.0.0.1", self.port), timeout=60).makefile("rwb")
                    parts = [word.encode() for word in words]
                    self.stream.write(b"*%d\r\n" % len(parts))
                    for part in parts:
                        self.stream.write(b"$%d\r\n%b\r\n" % (len(part), part))
                    self.stream.flush()
                    return self.read()
                except OSError:
                    self.stream = None
                    if is_last:
                        raise

    def read(self):
        line = self.stream.readline()
        kind, rest = line[:1], line[1:].strip()
        if kind == b"$":
            return None if rest == b"-1" else self.stream.read(int(rest) + 2)[:-2].decode()
        if kind == b"*":
            return None if rest == b"-1" else [self.read() for _ in range(int(rest))]
        if kind == b"-":
            raise ValueError(rest.decode())
        if not kind:
            raise ConnectionResetError("redis closed the connection")
        return rest.decode()


class Service:
    """Knows only /health and how to go wrong."""

    def __init__(self) -> None:
        self.leak = 0
        self.burning = 0
        self.slow_exit = 0.0
        self.leaked: list[mmap.mmap] = []
        self.redis = Redis()

    def get(self, path: str, query: dict[str, str]) -> str:
        raise KeyError(path)

    def put(self, path: str, body: bytes) -> str:
        raise KeyError(path)

    def fault(self, name: str, value: str) -> None:
        if name == "leak":
            is_new, self.leak = not self.leak, size(value)
            if is_new:
                threading.Thread(target=self.leak_on, daemon=True).start()
        elif name == "burn":
            self.burning = int(value)
            for number in range(self.burning):
                threading.Thread(target=self.burn, args=(number,), daemon=True).start()
        elif name == "slow_exit":
            self.slow_exit = float(value.rstrip("s"))
        elif name == "crash":
            os._exit(int(value))
        else:
            raise KeyError(name)

    def leak_on(self) -> None:
        last = time.monotonic()
        while self.leak:
            time.sleep(0.05)
            now = time.monotonic()
            self.leaked.append(hold(max(mmap.PAGESIZE, int(self.leak * (now - last)))))
            last = now

    def burn(self, number: int) -> None:
        block = bytes(MIB)  # hashing so much lets go of the interpreter's lock
        while number < self.burning:
            hashlib.sha256(block).digest()

    def stop(self, *_: object) -> None:
        threading.Thread(target=self.end, daemon=True).start()

    def end(self) -> None:
        time.sleep(self.slow_exit)
        os._exit(0)


class Agent(Service):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.graphs: list[mmap.mmap] = []
        self.graph = size(os.environ.get("GRAPH", "4m"))
        self.most = size(os.environ.get("CACHE", "768m")) // self.graph
        signal.signal(signal.SIGUSR1, self.keep_less)

    def keep_less(self, *_: object) -> None:
        try:
            with open(os.environ["PLIMSOLL_STAGE_FILE"], encoding="utf-8") as file:
                scale = json.load(file)["scale"]
        except (KeyError, OSError, ValueError):
            scale = 0.5
        # Without the lock: a request that has it may be what this signal interrupted.
        self.most = max(1, int(len(self.graphs) * scale))
        print(f"agent: it keeps {self.most} graphs from now on", flush=True)

    def get(self, path: str, query: dict[str, str]) -> str:
        if path != "/answer":
            raise KeyError(path)
        with self.lock:
            while len(self.graphs) >= self.most:
                self.graphs.pop(0).close()
            self.graphs.append(hold(self.graph))
        answer = query["q"][::-1]
        self.redis.ask("SET", f"graph:{query['session']}", answer, "EX", "600")
        return answer


class Knowledge(Service):
    def __init__(self) -> None:
        super().__init__()
        self.model = hold(size(os.environ.get("MODEL", "224m")))

    def get(self, path: str, query: dict[str, str]) -> str:
        if path != "/embed":
            raise KeyError(path)
        weights = [0.0] * 64
        for word in query["text"].split():
            digest = hashlib.sha256(word.encode()).digest()
            weights[digest[0] % 64] += 1 + self.model[int.from_bytes(digest[1:4], "big") % len(self.model)]
        return json.dumps(weights)


class Vector(Service):
    def __init__(self) -> None:
        super().__init__()
        lot = random.Random(5)
        self.index = hold(size(os.environ.get("CACHE", "512m")))
        self.vectors = [array.array("d", (lot.gauss(0, 1) for _ in range(16))) for _ in range(64)]

    def get(self, path: str, query: dict[str, str]) -> str:
        if path != "/search":
            raise KeyError(path)
        wanted = self.vectors[int(query["id"]) % len(self.vectors)]
        near = [sum((a - b) ** 2 for a, b in zip(wanted, vector)) for vector in self.vectors]
        return str(near.index(min(near)))


class Auth(Service):
    def get(self, path: str, query: dict[str, str]) -> str:
        if path != "/token":
            raise KeyError(path)
        return hmac.new(b"laptop", query["user"].encode(), "sha256").hexdigest()


class Kept(Service):
    """session and case: what was put is in redis."""

    def get(self, path: str, query: dict[str, str]) -> str:
        found = self.redis.ask("GET", path)
        if found is None:
            raise KeyError(path)
        return found

    def put(self, path: str, body: bytes) -> str:
        self.redis.ask("SET", path, body.decode(), "EX", "600")
        return self.get(path, {})


class Evidence(Service):
    def __init__(self) -> None:
        super().__init__()
        self.folder = os.environ.get("EVIDENCE") or f"/tmp/plimsoll-evidence-{os.getuid()}"
        os.makedirs(self.folder, exist_ok=True)

    def file(self, path: str) -> str:
        return f"{self.folder}/{hashlib.sha256(path.encode()).hexdigest()[:8]}"

    def get(self, path: str, query: dict[str, str]) -> str:
        try:
            with open(self.file(path), "rb") as file:
                return hashlib.sha256(file.read()).hexdigest()
        except FileNotFoundError:
            raise KeyError(path) from None

    def put(self, path: str, body: bytes) -> str:
        new = f"{self.file(path)}.{os.getpid()}.{threading.get_ident()}"
        with open(new, "wb") as file:
            file.write(body)
        os.replace(new, self.file(path))  # all of it or nothing, whenever we die
        return self.get(path, {})


class Worker(Service):
    def __init__(self) -> None:
        super().__init__()
        threading.Thread(target=self.work, daemon=True).start()

    def work(self) -> None:
        while True:
            try:
                # What the one before us did not finish comes first.
                while self.redis.ask("LMOVE", "doing", "jobs", "RIGHT", "LEFT") is not None:
                    pass
                while True:
                    job = self.redis.ask("BLMOVE", "jobs", "doing", "LEFT", "RIGHT", "5")
                    if job is not None:
                        answer = json.dumps({"id": job, "answer": hashlib.sha256(job.encode()).hexdigest()})
                        self.redis.ask("RPUSH", "results", answer)
                        self.redis.ask("LREM", "doing", "1", job)
            except (OSError, ValueError) as why:
                print(f"worker: redis: {why}", file=sys.stderr, flush=True)
                time.sleep(0.5)


class Desktop(Service):
    def __init__(self) -> None:
        super().__init__()
        self.windows = hold(size(os.environ.get("CACHE", "256m")))


ROLES: dict[str, type[Service]] = {
    "agent": Agent, "knowledge": Knowledge, "vector": Vector, "auth": Auth, "session": Kept, "case": Kept,
    "evidence": Evidence, "worker": Worker, "desktop": Desktop,
}  # fmt: skip


def handler(service: Service) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def address(self) -> tuple[str, dict[str, str]]:
            url = urllib.parse.urlsplit(self.path)
            return url.path, dict(urllib.parse.parse_qsl(url.query))

        def answer(self, what) -> None:
            try:
                status, body = 200, what()
            except (KeyError, ValueError, IndexError) as why:
                status, body = 404, f"there is no {why}\n"
            except OSError as why:
                status, body = 502, f"{why}\n"
            data = body.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            path, query = self.address()
            self.answer(lambda: "fine\n" if path == "/health" else service.get(path, query))

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self.answer(lambda: service.put(self.address()[0], body))

        def do_POST(self) -> None:
            path, query = self.address()
            self.rfile.read(int(self.headers.get("Content-Length", "0")))

            def switch() -> str:
                if path != "/fault":
                    raise KeyError(path)
                for name, value in query.items():
                    service.fault(name, value)
                return "so be it\n"

            self.answer(switch)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    service = ROLES[args.role]()
    signal.signal(signal.SIGTERM, service.stop)
    Server(("127.0.0.1", args.port), handler(service)).serve_forever()


if __name__ == "__main__":
    main()
