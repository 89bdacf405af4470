#!/usr/bin/env python3
"""Incident 4 again, under control: a worker's tree runs away, before Plimsoll and after.

A memory group of our own (`plimsoll-example-…`, 1,200 MiB, no swap) stands in for the machine in both phases; in a
container with a memory limit, that is the machine. $PLIMSOLL names the plimsoll binary, else it is found in PATH.
Needs python3, node, chromium, and root or such a container. Exit code 1 when a promise did not hold.
"""

import argparse
import ctypes
import http.client
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
MIB = 1 << 20
MACHINE = 1200 * MIB
LINE = 700 * MIB
CONTAINER = (900 * MIB, 4096 * MIB)  # a container of this size may stand in for the machine
UNHELD = 30.0  # seconds that the scene gets without Plimsoll: it may never end by itself
DEADLINE = 90.0  # seconds for anything that has to come
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
RUNAWAYS = {"worker": "worker.py crawler", "node": "crawler.js", "leaf": "--type=renderer"}  # and their command lines


class Machine:
    """The stand-in for the machine."""

    def __init__(self):
        root = "/sys/fs/cgroup"
        v1 = os.path.isdir(f"{root}/memory")
        base = f"{root}/memory" if v1 else root
        self.usage_file = "memory.usage_in_bytes" if v1 else "memory.current"
        self.kills_file = "memory.oom_control" if v1 else "memory.events"
        limit_file = "memory.limit_in_bytes" if v1 else "memory.max"
        self.group = f"plimsoll-example-{os.getpid()}"
        self.dir = f"{base}/{self.group}"
        self.scene = f"{self.dir}/scene"  # on v2 members may only be in a group that hands nothing on
        try:
            os.mkdir(self.dir)
            self.write(limit_file, MACHINE)
            swap = "memory.memsw.limit_in_bytes" if v1 else "memory.swap.max"
            if os.path.exists(f"{self.dir}/{swap}"):
                self.write(swap, MACHINE if v1 else 0)
            if not v1:
                self.write("cgroup.subtree_control", "+memory +pids")
            os.mkdir(self.scene)
            self.size = MACHINE
        except OSError as why:
            self.close()
            self.group, self.dir, self.scene = None, base, base
            limit = self.read(limit_file).strip()
            self.size = int(limit) if limit.isdigit() else 0
            if not CONTAINER[0] <= self.size <= CONTAINER[1]:
                sys.exit(
                    f"run.py: error: a runaway needs bounds: no memory group can be made here ({why}),\n"
                    f"and we are in no container of {CONTAINER[0] // MIB} MiB to {CONTAINER[1] // MIB} MiB.\n"
                    "Run it as root, or in a container as the README shows."
                )

    def write(self, name, value):
        with open(f"{self.dir}/{name}", "w", encoding="ascii") as file:
            file.write(str(value))

    def read(self, name):
        try:
            with open(f"{self.dir}/{name}", encoding="ascii") as file:
                return file.read()
        except OSError:
            return ""

    def enter(self):
        """In a child, before it becomes the server."""
        if self.group:
            with open(f"{self.scene}/cgroup.procs", "w", encoding="ascii") as file:
                file.write("0")

    def usage(self):
        return int(self.read(self.usage_file) or 0)

    def kills(self):
        """The kernel's kills among all that nobody but the machine holds."""
        words = self.read(f"scene/{self.kills_file}" if self.group else self.kills_file).split()
        return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0

    def close(self):
        """Removes the group, and what a plimsoll that was killed left in it: all of them are dead."""
        for folder, _, _ in os.walk(self.dir, topdown=False) if self.group else []:
            for _ in range(100):
                try:
                    os.rmdir(folder)
                    break
                except OSError:
                    time.sleep(0.05)


def descendants():
    """All below us, as pid: command line. Whoever leaves its tree comes to us, the subreaper, unless Plimsoll has it."""
    parents, commands = {}, {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                commands[pid] = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        if state not in "ZX":
            parents[pid] = int(parent)
    found, new = {}, {os.getpid()}
    while new := {pid for pid, parent in parents.items() if parent in new and pid not in found}:
        found |= {pid: commands[pid] for pid in new}
    return found


def end_all():
    until = time.monotonic() + DEADLINE
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


class Observer(threading.Thread):
    """Asks the healthy worker for work, 50 times a second at most, and writes down once a second how all is."""

    def __init__(self, machine, port):
        super().__init__(daemon=True)
        self.machine, self.port, self.stop = machine, port, threading.Event()
        self.times, self.failed, self.peak, self.seconds = [], 0, 0, []

    def ask(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/work")
            answer = connection.getresponse()
            return answer.status == 200 and len(answer.read()) > 0
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def run(self):
        second, slowest, failed = time.monotonic() + 1, 0.0, 0
        while not self.stop.is_set():
            began = time.monotonic()
            good = self.ask()
            took = time.monotonic() - began
            self.times.append(1000 * took)
            self.peak = max(self.peak, self.machine.usage())
            slowest, failed = max(slowest, took), failed + (not good)
            if time.monotonic() >= second:
                self.seconds.append((self.machine.usage(), len(descendants()), slowest, failed))
                self.failed += failed
                second, slowest, failed = time.monotonic() + 1, 0.0, 0
            self.stop.wait(max(0.0, 0.02 - took))
        self.failed += failed

    def latency(self):
        times = sorted(self.times)
        return [times[min(len(times) - 1, int(len(times) * share))] for share in (0.5, 0.99, 1.0)]


def wait_for(what, condition, seconds=DEADLINE):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.1)
    raise TimeoutError(f"{what}: that did not come")


def certificate(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def free_ports():
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def phase(plimsoll, runaway, escape, after):
    """The whole scene once. Answers how many promises held, and those that did not."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # what is made from here on is also removed
    machine = Machine()
    folder = tempfile.mkdtemp(prefix="plimsoll-example-")
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        report = f"{folder}/certificate"
        held = [plimsoll, "run", "-m", str(LINE), "--timeout", "10m", "--name", "crawler", "--report", report, "--"]
        port, worker_port = free_ports()
        command = [sys.executable, f"{HERE}/server.py", "--port", str(port), "--worker-port", str(worker_port)]
        command += ["--runaway", runaway, *(["--escape"] if escape else []), "--crawler", shlex.join(held) if after else ""]
        env = dict(
            os.environ, TMPDIR=folder, PLIMSOLL_STATE_DIR=f"{folder}/state", PLIMSOLL_RUNTIME_DIR=f"{folder}/run"
        )
        if machine.group:
            env["PLIMSOLL_CGROUP_PARENT"] = f"/{machine.group}"  # the crawler's group is on this machine, too
        before = machine.kills()
        with open(f"{folder}/said", "w", encoding="utf-8") as said:
            server = subprocess.Popen(
                command, env=env, preexec_fn=machine.enter, start_new_session=True, stdout=said, stderr=said
            )
        observer = Observer(machine, port)
        wait_for("the healthy worker's first answer", observer.ask)
        observer.start()
        browser = lambda: sum("--type=" in command for command in descendants().values())
        wait_for("three browser processes", lambda: browser() >= 3 or certificate(report))
        try:
            if after:
                wait_for("the end at the line", lambda: certificate(report))
            else:
                wait_for("the kernel's kill", lambda: machine.kills() > before, UNHELD)
        except TimeoutError:
            if after:
                raise
        time.sleep(3)  # whether the neighbour is well afterwards, too
        observer.stop.set()
        observer.join()
        ours = (f"{HERE}/server.py", "worker.py healthy")
        left = [command for command in descendants().values() if not any(one in command for one in ours)]
        well = observer.ask() and server.poll() is None
        kills = machine.kills() - before
        told = certificate(report) if after else None
        row(runaway, after, observer, machine, kills, left, told)
        if after:
            with open(f"{folder}/said", encoding="utf-8") as said:
                for line in filter(lambda line: line.startswith("plimsoll: "), said):
                    print(textwrap.fill(line, 78, initial_indent="  ", subsequent_indent="    "))
            memory = told["memory"]
            promises = {
                f"it was certainly the line: {told['cause']}, {told['confidence']}":
                    (told["cause"], told["confidence"]) == ("memory_limit", "certain"),
                f"its peak of {memory['peak_bytes'] / MIB:.0f} MiB is at the line": memory["peak_bytes"] <= LINE * 1.05,
                f"the {runaway} is named first: {memory['largest'][0]['command'][:60]}":
                    RUNAWAYS[runaway] in memory["largest"][0]["command"],
                f"nothing is left of its tree: {left}": not left and told["tree"]["survivors"] == 0,
                f"the neighbour did all its work: {observer.failed} failed": observer.failed == 0 and well,
            }
        else:
            promises = {f"the machine was filled: {observer.peak // MIB} MiB": observer.peak >= machine.size * 0.95}
    except TimeoutError as what:
        promises = {str(what): False}
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # the end is not cut short
        end_all()
        machine.close()
        shutil.rmtree(folder, ignore_errors=True)
        stop_on_signals()
    broken = [promise for promise, holds in promises.items() if not holds]
    for promise in broken:
        print(f"  FAILED: {promise}", flush=True)
    return len(promises) - len(broken), len(broken)


HEAD = """\
              memory  most full  ended        healthy worker, ms
runaway        MiB   procs   s   by      left  p50   p99   max  failed  named"""


def row(runaway, after, observer, machine, kills, left, told):
    usages, counts, slowest, failed = zip(*observer.seconds)
    full = sum(usage >= machine.size * 0.97 for usage in usages)
    ended = told["boundary"] if after else "kernel" if kills else "nobody"
    largest = told["memory"]["largest"][0]["command"] if after else ""
    named = next((name for name, command in RUNAWAYS.items() if command in largest), largest[:8] or "nobody")
    p50, p99, worst = observer.latency()
    print(
        f"{runaway:<7}{'after' if after else 'before':<7}{observer.peak // MIB:>5}{max(counts):>7}{full:>5}   {ended:<8}"
        f"{len(left):>4}{p50:>5.0f}{p99:>6.0f}{worst:>6.0f}{observer.failed:>8}  {named}"
    )
    answers = ["x" if bad else "O" if slow > 1 else "o" if slow > 0.2 else "." for slow, bad in zip(slowest, failed)]
    print(f"  memory     {bars(usages, machine.size)}")
    print(f"  processes  {bars(counts, max(20, *counts))}")
    print(f"  answers    {''.join(answers[:66])}", flush=True)


def bars(values, whole):
    """A character a second."""
    return "".join("▁▂▃▄▅▆▇█"[max(0, min(7, int(8 * value / whole)))] for value in values[:66])


def stop_on_signals():
    def stop(number, _):
        sys.exit(128 + number)

    for number in SIGNALS:
        signal.signal(number, stop)


def chosen(args):
    """The scenes to play, each (runaway, escape, after)."""
    if args.lot is not None:  # each runaway once under Plimsoll, and one of them before, too
        lot = random.Random(args.lot)
        scenes = [(runaway, lot.random() < 0.5, True) for runaway in RUNAWAYS]
        without = [(*lot.choice(scenes)[:2], False)] if args.phase != "after" else []
        return without + scenes
    runaways = list(RUNAWAYS) if args.runaway == "all" else [args.runaway]
    phases = {"before": [False], "after": [True], "both": [False, True]}[args.phase]
    escapes = [False, True] if args.whole else [args.escape]
    return [(runaway, escape, after) for escape in escapes for runaway in runaways for after in phases]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runaway", choices=[*RUNAWAYS, "all"], default="all")
    parser.add_argument("--phase", choices=["before", "after", "both"], default="both")
    parser.add_argument("--escape", action="store_true", help="node and the browser leave by setsid and a double fork")
    parser.add_argument("--whole", action="store_true", help="first without --escape, then with it")
    parser.add_argument("--lot", type=int, metavar="SEED", help="a part of all that, by lot")
    args = parser.parse_args()
    programs = (os.environ.get("PLIMSOLL", "plimsoll"), "node", os.environ.get("CHROMIUM", "chromium"))
    for program in programs:
        if not shutil.which(program):
            sys.exit(f"run.py: error: there is no {program} here; the README says what is needed")
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    stop_on_signals()
    print(f"A machine of {MACHINE // MIB} MiB, or the container around us; the crawler's line: {LINE // MIB} MiB.")
    print("A character a second; answers: . in time, o over 0.2 s, O over 1 s, x failed.\n")
    print(HEAD)
    passed = failed = 0
    escaped = False
    for runaway, escape, after in chosen(args):
        if escape != escaped:
            print("-- it leaves its tree --" if escape else "-- it stays in its tree --")
            escaped = escape
        good, bad = phase(os.path.abspath(shutil.which(programs[0])), runaway, escape, after)
        passed, failed = passed + good, failed + bad
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
