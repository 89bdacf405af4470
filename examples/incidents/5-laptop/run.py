#!/usr/bin/env python3
"""Incident 5 again, a quarter of its size: nine services on a laptop of 2 GiB, before Plimsoll and after.

A memory group of our own (`plimsoll-laptop-…`, 2 GiB, no swap) stands for the laptop in both phases. $PLIMSOLL names the
plimsoll binary, else it is found in PATH. Needs python3, redis-server, and root. Exit code 1 when a promise did not hold.
"""

import argparse
import ctypes
import hashlib
import hmac
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import urllib.parse

sys.dont_write_bytecode = True  # nothing of ours stays in this folder
from service import Redis  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
MIB = 1 << 20
LAPTOP = 2048 * MIB
SERVICES = ["redis", "agent", "knowledge", "vector", "auth", "session", "case", "evidence", "worker"]
CPUS = {"redis": 0.0625, "agent": 0.25, "knowledge": 0.25, "vector": 0.125, "case": 0.25}  # as in plimsoll.yaml
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WIDTH = 24  # characters of a line of memory over time


class Failed(Exception):
    """Something that the scene needs did not come."""


class Laptop:
    """The stand-in for it."""

    def __init__(self) -> None:
        root = "/sys/fs/cgroup"
        v1 = os.path.isdir(f"{root}/memory")
        base = f"{root}/memory" if v1 else root
        self.usage_file = "memory.usage_in_bytes" if v1 else "memory.current"
        self.kills_file = "memory.oom_control" if v1 else "memory.events"
        limit_file = "memory.limit_in_bytes" if v1 else "memory.max"
        self.group = f"plimsoll-laptop-{os.getpid()}"
        self.dir = f"{base}/{self.group}"
        self.home = f"{self.dir}/home"  # on v2 members may only be in a group that hands nothing on
        try:
            os.mkdir(self.dir)
            self.write(limit_file, LAPTOP)
            swap = "memory.memsw.limit_in_bytes" if v1 else "memory.swap.max"
            if os.path.exists(f"{self.dir}/{swap}"):
                self.write(swap, LAPTOP if v1 else 0)
            if not v1:
                self.write("cgroup.subtree_control", "+memory +pids +cpu")
            os.mkdir(self.home)
        except OSError as why:
            self.close()
            sys.exit(
                f"run.py: error: the laptop is a memory group of {LAPTOP // MIB} MiB; none can be made here: {why}\n"
                "Run it as root. Without bounds a leak would take the memory of this machine."
            )

    def write(self, name: str, value: object) -> None:
        with open(f"{self.dir}/{name}", "w", encoding="ascii") as file:
            file.write(str(value))

    def read(self, name: str) -> str:
        try:
            with open(f"{self.dir}/{name}", encoding="ascii") as file:
                return file.read()
        except OSError:
            return ""

    def start(self, command: list[str], env: dict[str, str], said) -> subprocess.Popen:
        """A process on the laptop: a shell goes there and becomes it."""
        enter = f'echo $$ >"{self.home}/cgroup.procs" && exec "$@"'
        return subprocess.Popen(["sh", "-c", enter, "sh", *command], env=env, cwd=HERE, stdout=said, stderr=said,
                                stdin=subprocess.DEVNULL, start_new_session=True)

    def usage(self) -> int:
        return int(self.read(self.usage_file) or 0)

    def kills(self) -> int:
        """The kernel's kills of those whom nobody but the laptop holds."""
        words = self.read(f"home/{self.kills_file}").split()
        return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0

    def close(self) -> None:
        """Removes the group, and what a plimsoll that was killed left in it: all of them are dead."""
        for folder, _, _ in os.walk(self.dir, topdown=False):
            for _ in range(100):
                try:
                    os.rmdir(folder)
                    break
                except OSError:
                    time.sleep(0.05)


def descendants() -> set[int]:
    """All below us. Whoever loses its parent comes to us, the subreaper, unless Plimsoll has it."""
    parents = {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state not in "ZX":
            parents[pid] = int(parent)
    found: set[int] = set()
    new = {os.getpid()}
    while new := {pid for pid, parent in parents.items() if parent in new and pid not in found}:
        found |= new
    return found


def end_all() -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and (left := descendants()):
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.05)
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def rss(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, IndexError):
        return 0


class Client(threading.Thread):
    """Asks one service again and again, and checks each answer. It never asks twice for the same."""

    def __init__(self, name: str, ports: dict[str, int], pause: float, patience: float) -> None:
        super().__init__(daemon=True)
        self.service, self.port, self.pause, self.patience = name, ports[name], pause, patience
        self.redis = Redis(ports["redis"], again=False)
        self.stopped = threading.Event()
        self.answered, self.lost, self.slowest, self.why = 0, 0, 0.0, ""

    def http(self, method: str, path: str, body: str | None = None) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.patience)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            text = answer.read().decode()
            if answer.status != 200:
                raise OSError(f"status {answer.status}: {text.strip()}")
            return text
        finally:
            connection.close()

    def ask(self, number: int) -> tuple[str, str]:
        """What was answered, and what is right."""
        text = f"{self.service} {number}"
        match self.service:
            case "redis":
                self.redis.ask("SET", "asked", text, "EX", "600")
                return self.redis.ask("GET", "asked"), text
            case "agent":
                return self.http("GET", f"/answer?session={number % 8}&q={urllib.parse.quote(text)}"), text[::-1]
            case "knowledge":
                return str(len(json.loads(self.http("GET", f"/embed?text={urllib.parse.quote(text)}")))), "64"
            case "vector":
                return self.http("GET", f"/search?id={number % 64}"), str(number % 64)
            case "auth":
                right = hmac.new(b"laptop", str(number).encode(), "sha256").hexdigest()
                return self.http("GET", f"/token?user={number}"), right
            case "evidence":
                right = hashlib.sha256(text.encode()).hexdigest()
                return self.http("PUT", f"/evidence/{number % 8}", text), right
            case name:
                return self.http("PUT", f"/{name}/{number % 8}", text), text

    def run(self) -> None:
        number = 0
        while not self.stopped.is_set():
            began = time.monotonic()
            number += 1
            try:
                found, right = self.ask(number)
                if found != right:
                    raise OSError(f"{found!r} is not {right!r}")
                self.answered += 1
            except (OSError, ValueError, http.client.HTTPException) as why:
                self.lost += 1
                self.why = self.why or f"{type(why).__name__}: {why}"
                self.redis.stream = None
            took = time.monotonic() - began
            self.slowest = max(self.slowest, took)
            self.stopped.wait(max(0.0, self.pause - took))

    def stop(self) -> None:
        self.stopped.set()
        self.join()


class Jobs(Client):
    """Hands jobs to the worker, by way of redis, and collects their answers."""

    waiting = 0  # jobs that nobody has done yet, and that redis has

    def run(self) -> None:
        number, handed = 0, {}
        until = None
        while not self.stopped.is_set() or handed:
            if until and time.monotonic() > until:
                break
            try:
                if not self.stopped.is_set():
                    number += 1
                    handed[f"job {number}"] = time.monotonic()
                    self.redis.ask("RPUSH", "jobs", f"job {number}")
                    self.stopped.wait(self.pause)
                else:
                    until = until or time.monotonic() + self.patience
                    if self.is_over(handed):
                        break
                while (text := self.redis.ask("LPOP", "results")) is not None:
                    result = json.loads(text)
                    if result["id"] in handed:  # else it was answered twice, which costs nobody anything
                        self.slowest = max(self.slowest, time.monotonic() - handed.pop(result["id"]))
                        right = hashlib.sha256(result["id"].encode()).hexdigest() == result["answer"]
                        self.answered, self.lost = self.answered + right, self.lost + (not right)
            except (OSError, ValueError) as why:
                self.why = self.why or f"{type(why).__name__}: {why}"
                self.redis.stream = None
                time.sleep(0.2)
        self.lost += len(handed) - self.waiting
        if self.lost:
            self.why = self.why or f"no answer to {next(iter(handed), 'one')}"

    def is_over(self, handed: dict[str, float]) -> bool:
        """Whether the worker does nothing more: what is still to do has not changed for a while."""
        for _ in range(20):
            left = self.redis.ask("LRANGE", "jobs", "0", "-1") + self.redis.ask("LRANGE", "doing", "0", "-1")
            if not left or self.redis.ask("LLEN", "results") != "0":
                return False
            time.sleep(0.1)
        self.waiting = len(handed.keys() & set(left))
        return True


class Scene:
    """One phase: the laptop, what runs on it, who asks it, and what was seen."""

    def __init__(self, plimsoll: str, slow: float, after: bool) -> None:
        self.plimsoll, self.slow, self.after, self.began = plimsoll, slow, after, time.monotonic()
        self.calm = slow**0.5  # fewer requests, each of which does more
        self.leak = int(64 * MIB / self.calm)  # bytes a second
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # what is made from here on is also removed
        self.laptop = Laptop()
        self.folder = tempfile.mkdtemp(prefix="plimsoll-laptop-")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self.ports = dict(zip([*SERVICES, "desktop"], free_ports(len(SERVICES) + 1)))
        self.env = dict(
            os.environ,
            PATH=f"{os.path.dirname(os.path.realpath(sys.executable))}:{os.environ.get('PATH', '')}",
            PYTHONDONTWRITEBYTECODE="1",
            TMPDIR=self.folder,
            EVIDENCE=f"{self.folder}/evidence",
            GRAPH=str(int(4 * MIB * self.calm)),
            PAGES=f"{self.folder}/pages",
            PLIMSOLL_CGROUP_PARENT=f"/{self.laptop.group}",
            PLIMSOLL_STATE_DIR=f"{self.folder}/state",
            PLIMSOLL_RUNTIME_DIR=f"{self.folder}/run",
            PROBE_S=str(int(10 * slow)),
            START_S=str(int(60 * slow)),
            PROBE_FIRST_MS=str(int(500 * slow)),
            **{f"{name.upper()}_CPUS": str(cores * min(4, slow)) for name, cores in CPUS.items()},
            **{f"{name.upper()}_PORT": str(port) for name, port in self.ports.items()},
        )
        self.pids: dict[str, int] = {}
        self.ends: dict[str, str] = {}
        self.seen: list[dict[str, int]] = []
        self.story = ""
        self.acts: list[tuple[int, str]] = []
        self.throttled = 0.0
        self.status: dict = {}
        self.clients: dict[str, Client] = {}
        self.stopped = threading.Event()
        self.observer = threading.Thread(target=self.observe, daemon=True)

    # What runs.

    def start(self) -> None:
        self.desktop = self.laptop.start(
            [sys.executable, f"{HERE}/service.py", "desktop", "--port", str(self.ports["desktop"])],
            self.env, subprocess.DEVNULL,
        )  # fmt: skip
        with open(f"{self.folder}/said", "w", encoding="utf-8") as said:
            command = [self.plimsoll, "up"] if self.after else ["sh", f"{HERE}/before.sh"]
            self.all = self.laptop.start(command, self.env, said)
        for name in SERVICES:
            kind = Jobs if name == "worker" else Client
            self.clients[name] = kind(name, self.ports, 1 / 12 * self.slow, 60 + 20 * self.slow)
        if self.after:
            self.wait("everything runs", lambda: self.look() and self.is_up())
        for name in [*SERVICES, "desktop"]:
            self.wait(f"{name} answers", lambda: self.is_there(name))
        self.tell("all run, and requests begin")
        self.observer.start()
        for client in self.clients.values():
            client.start()

    def tell(self, what: str) -> None:
        phase, seconds = "after" if self.after else "before", time.monotonic() - self.began
        print(f"{phase}: {seconds:4.0f} s  {what}", file=sys.stderr, flush=True)

    def is_there(self, name: str) -> bool:
        try:
            if name == "redis":
                return self.clients[name].redis.ask("PING") == "PONG"
            connection = http.client.HTTPConnection("127.0.0.1", self.ports[name], timeout=30)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False

    def fault(self, name: str, what: str, act: str) -> None:
        """Switches it on. What crashes does not answer."""
        self.tell(f"{name}: {what}")
        self.acts.append((len(self.seen), act))
        try:
            self.clients[name].http("POST", f"/fault?{what}")
        except (OSError, http.client.HTTPException) as why:
            if "crash" not in what:
                raise Failed(f"{name} does not take {what}: {why}") from None

    def ask(self, *words: str) -> str:
        command = [self.plimsoll, *words]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, cwd=HERE, timeout=600).stdout

    # What is seen.

    def look(self) -> bool:
        """What `plimsoll status --json` shows, without a process a look."""
        connection = http.client.HTTPConnection("localhost", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.connect(f"{self.folder}/run/control.sock")
            connection.request("GET", "/api/v1/status")
            self.status = json.loads(connection.getresponse().read())
            return True
        except (OSError, ValueError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def rows(self, name: str) -> list[dict]:
        return [row for row in self.status.get("services", []) if row["name"] == name]

    def total(self, name: str, key: str) -> int:
        return sum(row[key] or 0 for row in self.rows(name))

    def causes(self, name: str) -> list[str]:
        return [row["last_cause"] for row in self.rows(name) if row["last_cause"]]

    def is_up(self, *names: str) -> bool:
        rows = [row for name in names or SERVICES for row in self.rows(name)]
        replicas = {row["name"]: row["scale"] for row in rows}
        return (
            len(replicas) == len(names or SERVICES)
            and all(row["state"] == "running" for row in rows)
            and all(scale["current"] == scale["target"] for scale in replicas.values())
        )

    def observe(self) -> None:
        while not self.stopped.is_set():
            seen = {"laptop": self.laptop.usage(), "desktop": rss(self.desktop.pid)}
            if self.after:
                self.look()
                seen |= {name: self.total(name, "memory_bytes") for name in SERVICES}
                self.throttled = max([self.throttled, *(row["throttled_percent"] for row in self.rows("vector"))])
            else:
                self.read_ends()
                seen |= {name: rss(self.pids.get(name, 0)) if name not in self.ends else 0 for name in SERVICES}
            self.seen.append(seen)
            self.stopped.wait(0.25 * self.calm)

    def read_ends(self) -> None:
        with open(f"{self.folder}/said", encoding="utf-8") as said:
            for line in said:
                match line.split():
                    case [name, "is", pid]:
                        self.pids[name] = int(pid)
                    case [name, "ended", "with", code]:
                        self.ends.setdefault(name, code)

    def peak(self, name: str) -> int:
        return max((seen[name] for seen in self.seen), default=0)

    def wait(self, what: str, condition, seconds: float = 60) -> None:
        until = time.monotonic() + seconds * self.slow
        while not condition():
            if time.monotonic() > until:
                raise Failed(f"{what}: that did not come")
            if self.all.poll() is not None:
                raise Failed(f"{what}: that did not come, for what was started has ended with {self.all.returncode}")
            time.sleep(0.1 * self.slow)

    def pause(self, seconds: float) -> None:
        time.sleep(seconds * self.calm)

    # The two stories.

    def play_before(self) -> dict[str, bool]:
        before = self.laptop.kills()
        self.wait("the agent's graph has grown", lambda: self.seen and self.seen[-1]["agent"] > 450 * MIB)
        self.fault("knowledge", f"leak={self.leak * 3 // 4}", "L")
        self.wait("the kernel's kill", lambda: self.laptop.kills() > before)
        self.wait("who was killed", self.innocent)
        self.pause(4)  # whether anybody brings it back
        self.end_load()
        lost = {name: client.lost for name, client in self.clients.items() if client.lost and name != "knowledge"}
        killed = self.innocent()
        last = next((seen for seen in reversed(self.seen) if seen["agent"]), self.seen[0])
        return {
            f"the laptop was filled: {self.peak('laptop') // MIB} MiB": self.peak("laptop") >= LAPTOP * 0.95,
            # And perhaps another one, before the load has ended.
            f"the kernel killed one that did not leak: {self.ends}": "agent" in killed,
            f"it was the largest: {last}": last["agent"] == max(last[name] for name in SERVICES),
            f"nobody brought it back, and its requests are lost: {lost}": lost.get("agent", 0) > 0,
        }

    def innocent(self) -> list[str]:
        """Whom the kernel killed though it did not leak. (It may take knowledge, too, before anybody can look.)"""
        return [name for name, code in self.ends.items() if code == "137" and name != "knowledge"]

    def play_after(self) -> dict[str, bool]:
        self.pause(2)
        self.fault("knowledge", f"leak={self.leak}", "L")
        self.wait("the end of knowledge at its line", lambda: self.total("knowledge", "oom_kills") > 0)
        self.wait("knowledge is back", lambda: self.total("knowledge", "restarts") > 0 and self.is_up("knowledge"))
        self.fault("auth", f"leak={self.leak // 2}", "R")
        self.wait("the end of one auth", lambda: self.total("auth", "oom_kills") > 0)
        self.wait("two of auth again", lambda: self.total("auth", "restarts") > 0 and self.is_up("auth"))
        self.fault("evidence", "crash=3", "C")
        self.wait("evidence is back", lambda: self.total("evidence", "restarts") > 0 and self.is_up("evidence"))
        self.fault("vector", "burn=2", "B")
        self.wait("vector stands still at its quota", lambda: self.throttled >= 50)
        self.pause(2)
        self.fault("vector", "burn=0", "")
        self.wait("the agent was asked to keep less", lambda: "it keeps" in self.ask("logs", "agent"))
        self.fault("worker", f"leak={2 * self.leak}", "W")
        self.wait("the worker is evicted", lambda: self.causes("worker") == ["evicted"])
        self.wait("all others run", lambda: self.is_up(*(name for name in SERVICES if name != "worker")))
        self.pause(2)
        self.end_load()
        self.status = json.loads(self.ask("status", "--json"))
        promises = self.judge()
        return promises | self.go_down()

    def judge(self) -> dict[str, bool]:
        certificate = json.loads(self.ask("explain", "knowledge", "--json") or "{}")
        memory = certificate.get("memory", {})
        cause = (certificate.get("cause"), certificate.get("confidence"))
        evidence = "; ".join(f"{one['source']}: {one['detail']}" for one in certificate.get("evidence", []))
        self.story = f"knowledge met its line ({cause[0]}, {cause[1]}: {evidence}) and was back by its policy."
        faulty = {"knowledge", "auth", "evidence", "worker"}
        touched = {name: (self.total(name, "restarts"), self.total(name, "oom_kills")) for name in SERVICES}
        lost = {name: (client.lost, client.why) for name, client in self.clients.items() if client.lost}
        others = {name: why for name, why in lost.items() if name not in ("knowledge", "evidence")}
        back = {name: touched[name][0] == 1 and self.is_up(name) for name in ("knowledge", "auth", "evidence")}
        jobs, causes = self.clients["worker"], self.causes("worker")
        try:
            with open(f"{self.folder}/pages", encoding="utf-8") as pages:
                pages = [json.loads(line) for line in pages]
        except (OSError, ValueError):
            pages = []
        limits = {name: self.rows(name)[0]["limit_bytes"] // MIB for name in ("agent", "vector", "redis")}
        agent, laptop = self.peak("agent") // MIB, self.peak("laptop") // MIB
        return {
            f"knowledge certainly met its line: {cause}": cause == ("memory_limit", "certain"),
            f"that is 512 MiB: {memory}": memory.get("limit_bytes") == 512 * MIB >= memory.get("peak_bytes", 0) * 0.95,
            f"it is back by its policy: {touched['knowledge']}": back["knowledge"],
            f"one auth met its line and is back: {touched['auth']}": back["auth"],
            f"evidence crashed and is back: {touched['evidence']}": back["evidence"],
            f"the best-effort worker was evicted: {causes}": causes == ["evicted"],
            f"its jobs are done or wait in redis: {jobs.answered}, {jobs.waiting}": jobs.lost == 0,
            f"nobody else ended: {touched}": all(touched[name] == (0, 0) for name in SERVICES if name not in faulty),
            f"all others answered every request: {others}": not others,
            f"requests were sent throughout: {self.asked()}": min(self.asked().values()) > 10,
            f"vector stood still, {self.throttled:.0f} % of its periods, and was not killed": self.throttled >= 50,
            f"the agent was asked to keep less, and did: {agent} MiB": 0 < self.seen[-1]["agent"] < 300 * MIB,
            f"the limits are those of the file: {limits}": limits == {"agent": 384, "vector": 256, "redis": 128},
            f"both alerts were delivered: {pages}": len(pages) >= 2,
            f"nobody met the laptop's own limit: {laptop} MiB": self.laptop.kills() == 0 and self.desktop.poll() is None,
        }

    def asked(self) -> dict[str, int]:
        return {name: client.answered + client.lost for name, client in self.clients.items()}

    def go_down(self) -> dict[str, bool]:
        """Session takes a minute to end, and has two seconds."""
        self.fault("session", "slow_exit=60s", "")
        self.ask("down")
        self.all.wait(120 * self.slow)
        left = descendants() - {self.desktop.pid}
        groups = [entry.name for entry in os.scandir(self.laptop.dir) if entry.is_dir() and entry.name != "home"]
        is_empty = not left and not groups and self.all.returncode == 0
        return {f"down leaves nothing: processes {left}, groups {groups}": is_empty}

    def end_load(self) -> None:
        for client in self.clients.values():
            client.stopped.set()
        for client in self.clients.values():
            client.join()
        self.stopped.set()
        self.observer.join()

    def close(self) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # the end is not cut short
        self.stopped.set()
        for client in self.clients.values():
            client.stopped.set()
        end_all()
        self.laptop.close()
        os.environ.get("KEEP") and shutil.copy(f"{self.folder}/said", os.environ["KEEP"])
        shutil.rmtree(self.folder, ignore_errors=True)
        stop_on_signals()


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


# The table.

HEAD = f"""\
                  line   peak         re-    requests    slowest
                   MiB    MiB  kills starts  right  lost       s  memory, from start to end"""


def table(before: Scene | None, after: Scene | None) -> None:
    if after:
        print("L knowledge leaks, R a replica of auth leaks, C evidence crashes, B vector burns, W worker takes all\n")
    print(HEAD)
    if after:
        print(f"{'':<66}{marks(after)}")
    scenes = [scene for scene in (before, after) if scene and scene.seen]
    for name in [*SERVICES, "desktop", "laptop"]:
        whole = LAPTOP if name == "laptop" else max([scene.peak(name) for scene in scenes] + [1])
        for scene in scenes:
            row(name, scene, whole)


def row(name: str, scene: Scene, whole: int) -> None:
    client = scene.clients.get(name)
    line = kills = starts = ""
    if name == "laptop":
        line, kills = LAPTOP // MIB, scene.laptop_kills
    elif name == "desktop":
        kills = int(scene.desktop_killed)
    elif scene.after:
        lines = [row["limit_bytes"] // MIB for row in scene.rows(name)]
        line = "budget" if name == "worker" else f"{len(lines)}x{lines[0]}" if len(lines) > 1 else (lines or [""])[0]
        kills = "evict" if "evicted" in scene.causes(name) else scene.total(name, "oom_kills")
        starts = scene.total(name, "restarts")
    else:
        kills, starts = int(scene.ends.get(name) == "137"), 0
    numbers = f"{client.answered:>7}{client.lost:>6}{client.slowest:>8.2f}" if client else f"{'':>21}"
    print(
        f"{name:<9} {'after' if scene.after else 'before':<6}{line:>6}{scene.peak(name) // MIB:>7}{kills:>7}{starts:>7}"
        f"{numbers}  {bars([seen[name] for seen in scene.seen], whole)}"
    )


def stories(before: Scene | None, after: Scene | None) -> list[str]:
    told = []
    if before and (killed := before.innocent()):
        told.append(
            f"before: the kernel killed {', '.join(killed)}, the largest, which had done nothing; nobody brought it back, "
            f"and {before.clients[killed[0]].lost} of its requests are lost."
        )
    if after and after.story:
        agent, vector, jobs = after.seen[-1]["agent"] // MIB, after.clients["vector"], after.clients["worker"]
        told += [
            f"after: {after.story}",
            f"agent: asked at 90 % of its line to keep less, it went from {after.peak('agent') // MIB} to {agent} MiB.",
            f"vector: stood still in {after.throttled:.0f} % of its periods, its quota being used up; slowest answer "
            f"{vector.slowest:.2f} s, no kill.",
            f"worker: best-effort, so that the budget's other members stay; {jobs.answered} jobs are done, and "
            f"{jobs.waiting} wait in redis until it may come back.",
        ]
        told += [f"{name}: {client.lost} lost while it was down ({client.why})"
                 for name, client in after.clients.items() if client.lost]  # fmt: skip
    return told


def marks(scene: Scene) -> str:
    line = [" "] * WIDTH
    for at, act in scene.acts:
        if act:
            line[min(WIDTH - 1, at * WIDTH // max(1, len(scene.seen)))] = act
    return "".join(line).rstrip()


def bars(values: list[int], whole: int) -> str:
    """The most of each of the equal parts of the time."""
    marks = [len(values) * at // WIDTH for at in range(WIDTH + 1)]
    parts = [values[begin : max(begin + 1, end)] for begin, end in zip(marks, marks[1:])]
    return "".join("▁▂▃▄▅▆▇█"[max(0, min(7, int(8 * max(part, default=0) / whole)))] for part in parts)


def stop_on_signals() -> None:
    def stop(number: int, _: object) -> None:
        sys.exit(128 + number)

    for number in SIGNALS:
        signal.signal(number, stop)


def play(plimsoll: str, slow: float, after: bool) -> tuple[Scene, dict[str, bool]]:
    scene = Scene(plimsoll, slow, after)
    try:
        scene.start()
        promises = scene.play_after() if after else scene.play_before()
    except Failed as what:
        promises = {str(what): False}
        with open(f"{scene.folder}/said", encoding="utf-8") as said:
            print("".join(said.readlines()[-20:]), file=sys.stderr)
    finally:
        scene.laptop_kills, scene.desktop_killed = scene.laptop.kills(), scene.desktop.poll() is not None
        scene.close()
    return scene, promises


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phase", choices=["before", "after", "both"], default="both")
    parser.add_argument("--slow", type=float, default=1.0, metavar="N",
                        help="on a machine that is so much slower: less load, slower leaks, more patience")
    args = parser.parse_args()
    programs = (os.environ.get("PLIMSOLL", "plimsoll"), "redis-server", "redis-cli")
    for program in programs:
        if not shutil.which(program):
            sys.exit(f"run.py: error: there is no {program} here; the README says what is needed")
    plimsoll = os.path.abspath(shutil.which(programs[0]))
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    stop_on_signals()
    scenes: dict[bool, Scene] = {}
    promises: dict[str, bool] = {}
    for after in {"before": [False], "after": [True], "both": [False, True]}[args.phase]:
        scenes[after], more = play(plimsoll, args.slow, after)
        promises |= more
    table(scenes.get(False), scenes.get(True))
    for line in stories(scenes.get(False), scenes.get(True)):
        print(textwrap.fill(line, 94, subsequent_indent="  "))
    broken = [promise for promise, holds in promises.items() if not holds]
    for promise in broken:
        print(f"  FAILED: {promise}")
    print(f"{len(promises) - len(broken)} passed, {len(broken)} failed")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
