#!/usr/bin/env python3
"""Incident 4 again, under control: a worker's tree runs away, without Plimsoll and with it.

    run.py [--runaway worker|node|leaf|all] [--escape] [--phase before|after|both] [--keep]

A memory group of our own (`plimsoll-example-…`, 1,200 MiB) stands in for the machine in both phases; in a container
with a memory limit of its own, that is the machine. The plimsoll binary is $PLIMSOLL, else the one in PATH.
Needs python3, node, chromium, and root or such a container. Exit 1 when what Plimsoll promises did not hold.
"""

import argparse
import http.client
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
PLIMSOLL = os.environ.get("PLIMSOLL", "plimsoll")
MACHINE = 1200 << 20
LINE = 700 << 20
LARGEST_CONTAINER = 8 << 30
DEADLINE = 60.0  # for a phase, whatever happens
BEFORE = 30.0  # without Plimsoll it may never end
NAMES = {"worker": "worker.py", "node": "crawler.js", "leaf": "--type=renderer"}
TAG = "PLIMSOLL_EXAMPLE"
ROOT = "/sys/fs/cgroup"


class Machine:
    """The stand-in for the machine: a memory group of either version, or the container that we are in."""

    def __init__(self):
        v1 = os.path.isdir(f"{ROOT}/memory")
        self.limit_file, self.peak_file, self.kills_file, self.usage_file = (
            ("memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control", "memory.usage_in_bytes")
            if v1 else ("memory.max", "memory.peak", "memory.events", "memory.current")
        )
        base = f"{ROOT}/memory" if v1 else ROOT
        self.name = f"plimsoll-example-{os.getpid()}"
        self.made = f"{base}/{self.name}"
        try:
            os.mkdir(self.made)
            self.dir = self.made
            self.write(self.limit_file, str(MACHINE))
            swap = "memory.memsw.limit_in_bytes" if v1 else "memory.swap.max"
            if os.path.exists(f"{self.dir}/{swap}"):
                self.write(swap, str(MACHINE) if v1 else "0")
            if not v1:
                self.write("cgroup.subtree_control", "+memory +pids")
            os.mkdir(f"{self.made}/scene")
        except OSError as why:
            self.close()
            self.made, self.dir = None, base
            limit = self.read(self.limit_file, "max").strip()
            if not limit.isdigit() or int(limit) > LARGEST_CONTAINER:
                sys.exit(
                    f"run.py: error: cannot make a group to stand in for the machine ({why}), and no container with a "
                    "memory limit is around us.\nRun it as root, or in a container as the README says."
                )

    def write(self, name, text):
        with open(f"{self.dir}/{name}", "w", encoding="ascii") as file:
            file.write(text)

    def read(self, name, default=""):
        try:
            with open(f"{self.dir}/{name}", encoding="ascii") as file:
                return file.read()
        except OSError:
            return default

    def enter(self):
        """In the child, before it becomes the server."""
        if self.made:
            with open(f"{self.made}/scene/cgroup.procs", "w", encoding="ascii") as file:
                file.write("0")

    def kills(self):
        """OOM kills among those that nobody but the machine holds."""
        words = self.read(f"scene/{self.kills_file}" if self.made else self.kills_file).split()
        return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0

    def usage(self):
        text = self.read(self.usage_file).strip()
        return int(text) if text else 0

    def close(self):
        until = time.monotonic() + 10
        while self.made and os.path.isdir(self.made) and time.monotonic() < until:
            for group in (f"{self.made}/scene", self.made):
                try:
                    os.rmdir(group)
                except OSError:
                    time.sleep(0.02)


def tree(tag):
    """Everybody who carries the tag: (pid, command line)."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                mine = f"{TAG}={tag}".encode() in file.read().split(b"\0")
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                command = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        if mine and int(pid) != os.getpid() and command:
            found.append((int(pid), command))
    return found


def kill_all(tag):
    until = time.monotonic() + 20
    while time.monotonic() < until and (left := tree(tag)):
        for pid, _ in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.05)


class Load(threading.Thread):
    """A bounded load on the healthy worker: one request at a time, fifty a second at most."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.port, self.times, self.errors, self.stop = port, [], 0, threading.Event()

    def one(self):
        began = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/work")
            answer = connection.getresponse()
            answer.read()
            good = answer.status == 200
        except (OSError, http.client.HTTPException):
            good = False
        finally:
            connection.close()
        return good, time.monotonic() - began

    def run(self):
        while not self.stop.is_set() and len(self.times) < 50 * DEADLINE:
            good, took = self.one()
            self.times.append(took)
            self.errors += not good
            self.stop.wait(max(0.0, 0.02 - took))

    def figures(self):
        self.stop.set()
        self.join(15)
        times = sorted(self.times)
        if not times:
            return 0.0, 0.0, 0.0
        return tuple(1000 * times[min(len(times) - 1, int(len(times) * q))] for q in (0.5, 0.99, 1.0))


def wait_for(what, condition, seconds=DEADLINE):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (found := condition()):
            return found
        time.sleep(0.05)
    raise TimeoutError(what)


def phase(name, runaway, escape, keep):
    """One run of the whole scene. Answers a row of the table and the promises that were broken."""
    scene = tempfile.mkdtemp(prefix="plimsoll-example-")
    tag = os.path.basename(scene)
    report = os.path.join(scene, "certificate.json")
    after = name == "after"
    prefix = [PLIMSOLL, "run", "-m", str(LINE), "--name", "crawler", "--report", report, "--"] if after else []
    port = 20000 + os.getpid() % 20000
    env = dict(
        os.environ, TMPDIR=scene, PLIMSOLL_STATE_DIR=f"{scene}/state", PLIMSOLL_RUNTIME_DIR=f"{scene}/run", **{TAG: tag}
    )
    machine = Machine()
    if machine.made:
        env["PLIMSOLL_CGROUP_PARENT"] = f"/{machine.name}"  # so that the crawler's group is on this machine, too
    kills_before = machine.kills()
    broken = []
    try:
        command = [sys.executable, f"{HERE}/server.py", "--port", str(port), "--runaway", runaway]
        command += ["--escape"] * escape + ["--crawler", shlex.join(prefix)]
        with open(f"{scene}/stderr", "w", encoding="utf-8") as stderr:
            server = subprocess.Popen(command, env=env, preexec_fn=machine.enter, stderr=stderr, stdout=stderr)
        load = Load(port)
        wait_for("the healthy worker", lambda: load.one()[0])
        load.start()
        browsers = lambda: [one for one in tree(tag) if "chromium" in one[1] and "crawler.js" not in one[1]]
        wait_for("three browser processes", lambda: len(browsers()) >= 3)
        most = 0

        def ended():
            nonlocal most
            most = max(most, machine.usage())
            return os.path.exists(report) and os.path.getsize(report) if after else machine.kills() > kills_before

        try:
            wait_for("the runaway's end", ended, DEADLINE if after else BEFORE)
        except TimeoutError:
            if after:
                raise
            # The machine stands at its limit and the kernel kills nobody: it reads file pages again and again instead.
        time.sleep(3)  # whether the neighbour is well afterwards, too
        p50, p99, slowest = load.figures()
        left = [command for _, command in tree(tag) if not any(own in command for own in ("server.py", "healthy"))]
        healthy = load.one()[0] and server.poll() is None
        kills = machine.kills() - kills_before
        certificate = {}
        if after:
            with open(report, encoding="utf-8") as file:
                certificate = json.load(file)
            largest = certificate["memory"]["largest"][0]["command"]
            promises = {
                f"cause is memory_limit, certain: {certificate['cause']}, {certificate['confidence']}":
                    (certificate["cause"], certificate["confidence"]) == ("memory_limit", "certain"),
                f"peak {certificate['memory']['peak_bytes']} within the line {LINE}":
                    certificate["memory"]["peak_bytes"] <= LINE * 21 // 20,
                f"the {runaway} is named: {largest[:60]}": NAMES[runaway] in largest,
                f"nothing is left of the tree: {left[:3]}": not left and certificate["tree"]["survivors"] == 0,
                f"the neighbour answered every request: {load.errors} errors": load.errors == 0 and healthy,
            }
            broken = [promise for promise, holds in promises.items() if not holds]
        named = certificate["memory"]["largest"][0]["command"] if after else "nobody"
        row = (
            runaway, "plimsoll" if after else "nobody", f"{most >> 20}", "line" if after else f"{kills} OOM", str(len(left)),
            {"worker": "worker.py", "node": "crawler.js", "leaf": "renderer"}[runaway] if NAMES[runaway] in named else named[:10],
            f"{p50:.0f}", f"{p99:.0f}", f"{slowest:.0f}", str(load.errors), "yes" if healthy else "NO",
        )
        with open(f"{scene}/stderr", encoding="utf-8") as file:
            said = [line.rstrip() for line in file if line.startswith("plimsoll")]
    except TimeoutError as what:
        return (runaway, name, *["?"] * 9), [f"{what}: it did not come to that"], []
    finally:
        kill_all(tag)
        machine.close()
        if keep:
            print(f"kept: {scene}")
        else:
            shutil.rmtree(scene, ignore_errors=True)
    return row, broken, said


HEAD = ("runaway", "held by", "MiB", "end", "left", "named", "p50", "p99", "max", "errors", "well")
WIDTHS = (8, 9, 5, 6, 5, 11, 5, 6, 6, 7, 4)


def line(cells):
    return " ".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS)).rstrip()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runaway", choices=["worker", "node", "leaf", "all"], default="all")
    parser.add_argument("--escape", action="store_true", help="the crawler leaves its tree by setsid and a double fork")
    parser.add_argument("--phase", choices=["before", "after", "both"], default="both")
    parser.add_argument("--keep", action="store_true", help="keep the scene's files")
    args = parser.parse_args()
    for program in (PLIMSOLL, "node", os.environ.get("CHROMIUM", "chromium")):
        if not shutil.which(program):
            sys.exit(f"run.py: error: {program} is not there; the README says what is needed")
    print(f"The machine: {MACHINE >> 20} MiB. The crawler's line under Plimsoll: {LINE >> 20} MiB.")
    print("Latency of the healthy neighbour in ms, through all of it.\n")
    print(line(HEAD))
    failed, said = [], []
    for runaway in ["worker", "node", "leaf"] if args.runaway == "all" else [args.runaway]:
        for name in ["before", "after"] if args.phase == "both" else [args.phase]:
            row, broken, words = phase(name, runaway, args.escape, args.keep)
            print(line(row), flush=True)
            failed += [f"{runaway}, {name}: {promise}" for promise in broken]
            said = words or said
    print("\nMiB: most held at once. end: OOM kills, or the line. left: the crawler's processes afterwards.")
    if said:
        print("What plimsoll said last:\n" + "\n".join(f"  {one}" for one in said))
    for one in failed:
        print(f"BROKEN: {one}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
