#!/usr/bin/env python3
"""Incident 3 again, an eighth of its size: a wrapper of the chat API whose agents leak, before Plimsoll and after.

A memory group of our own (`plimsoll-example-…`, 1,200 MiB, no swap) stands in for the machine in both phases. $PLIMSOLL names
the plimsoll binary, else it is found in PATH. Needs root, and a python3 with fastapi and uvicorn. Exit code 1 when a promise
did not hold.
"""

import argparse
import ctypes
import http.client
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
MIB = 1 << 20
MACHINE = 1200 * MIB
LINE = 144 * MIB  # as in plimsoll.yaml
TURNS = 10  # of one agent
MOST_AGENTS = 2  # max_sessions + warm
OURS = 20 * MIB  # what plimsoll itself may hold
GIVEN_UP = 20  # requests in a row that failed: it does not come back
DEADLINE = 60.0  # seconds for anything that has to come
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
        except OSError as why:
            self.close()
            sys.exit(f"run.py: error: a leak needs bounds, and no memory group can be made here: {why}\nRun it as root.")

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
        """In a child, before it becomes the wrapper."""
        with open(f"{self.scene}/cgroup.procs", "w", encoding="ascii") as file:
            file.write("0")

    def usage(self):
        return int(self.read(self.usage_file) or 0)

    def kills(self):
        """The kernel's kills among all that nobody but the machine holds."""
        words = self.read(f"scene/{self.kills_file}").split()
        return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0

    def close(self):
        """Removes the group, and what a plimsoll that was killed left in it: all of them are dead."""
        for folder, _, _ in os.walk(self.dir, topdown=False):
            for _ in range(100):
                try:
                    os.rmdir(folder)
                    break
                except OSError:
                    time.sleep(0.05)


def descendants():
    """All below us, as pid: (parent, command line). Whoever leaves its tree comes to us, the subreaper."""
    parents, found, new = {}, {}, {os.getpid()}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state not in "ZX":
            parents[pid] = int(parent)
    while new := {pid for pid, parent in parents.items() if parent in new and pid not in found}:
        found |= {pid: (parents[pid], command_of(pid)) for pid in new}
    return found


def command_of(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def held(pid):
    """Its memory, of pages that it shares its part."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0


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
    """Looks ten times a second."""

    def __init__(self, machine):
        super().__init__(daemon=True)
        self.machine, self.stop = machine, threading.Event()
        self.usages, self.agents, self.processes, self.wrapper, self.over = [], 0, 0, [], 0

    def run(self):
        while not self.stop.wait(0.1):
            self.usages.append(self.machine.usage())
            all_of_them = descendants()
            is_agent = {pid for pid, (_, command) in all_of_them.items() if command.endswith("agent.py")}
            # What an agent starts is for a moment as its parent is.
            agents = [pid for pid in is_agent if all_of_them[pid][0] not in is_agent]
            ours = [pid for pid, (_, command) in all_of_them.items() if "before.py" in command or command.endswith(" up")]
            self.agents, self.processes = max(self.agents, len(agents)), max(self.processes, len(all_of_them))
            self.wrapper.append(sum(map(held, ours)))
            self.over += sum(map(held, is_agent)) > len(agents) * LINE


def ask(port, number):
    """`answered`, `refused` in good order, or `lost`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    try:
        body = {"model": "haiku", "messages": [{"role": "user", "content": f"message {number}"}]}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = json.loads(answer.read())
        if answer.status == 200:
            right = said["choices"][0]["message"]["content"] == f"message {number} is answered"
            return "answered" if right else "lost"
        error = said["error"]  # the API's own shape, which the wrapper's 500 has not
        return "refused" if error["message"] and {"type", "param", "code"} <= error.keys() else "lost"
    except (OSError, ValueError, KeyError, http.client.HTTPException):
        return "lost"
    finally:
        connection.close()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def wait_for(what, condition):
    until = time.monotonic() + DEADLINE
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.05)
    raise TimeoutError(f"{what}: that did not come")


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return json.loads(answer.read()) if answer.status == 200 else None
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()


class Phase:
    """One of the two, played: all that was measured."""

    def __init__(self, plimsoll, requests, after):
        self.counts = {"answered": 0, "refused": 0, "lost": 0}
        self.first_lost, self.asked, self.restarts, self.said = None, 0, {}, ""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # what is made from here on is also removed
        self.machine = Machine()
        self.folder = tempfile.mkdtemp(prefix="plimsoll-example-")
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            self.play(plimsoll, requests, after)
        finally:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)  # the end is not cut short
            end_all()
            self.machine.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            stop_on_signals()

    def play(self, plimsoll, requests, after):
        os.chmod(self.folder, 0o755)
        for name in ("agent.py", "before.py", "plimsoll.yaml"):  # where an agent with a user of its own may read it
            shutil.copy(f"{HERE}/{name}", self.folder)
        port = free_port()
        env = dict(
            os.environ, PORT=str(port), PYTHONDONTWRITEBYTECODE="1",
            PATH=f"/usr/bin:{os.environ['PATH']}",  # the system's python3, which an agent with a user of its own may read
            PLIMSOLL_CGROUP_PARENT=f"/{self.machine.group}",
            PLIMSOLL_STATE_DIR=f"{self.folder}/state", PLIMSOLL_RUNTIME_DIR=f"{self.folder}/run",
        )  # fmt: skip
        before = [sys.executable, f"{self.folder}/before.py", "--port", str(port)]
        with open(f"{self.folder}/said", "w", encoding="utf-8") as said:
            self.wrapper = subprocess.Popen(
                [plimsoll, "up"] if after else before, env=env, cwd=self.folder, preexec_fn=self.machine.enter,
                start_new_session=True, stdout=said, stderr=said, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        wait_for("its first answer", lambda: get(port, "/health"))
        self.observer = Observer(self.machine)
        self.observer.start()
        began, in_a_row = time.monotonic(), 0
        for number in range(1, requests + 1):
            self.asked = number
            usage = self.machine.usage()
            how = ask(port, number)
            self.counts[how] += 1
            if number > TURNS and number % TURNS == 1:
                self.restarts[number // TURNS] = (usage, self.machine.usage())
            in_a_row = in_a_row + 1 if how == "lost" else 0
            self.first_lost = number if how == "lost" and self.first_lost is None else self.first_lost
            if in_a_row == GIVEN_UP:
                break
        self.seconds = time.monotonic() - began
        self.kills = self.machine.kills()
        self.health = get(port, "/health") or {}
        self.pool = get(port, "/api/v1/status")["pools"][0] if after else None
        self.observer.stop.set()
        self.observer.join()
        self.wrapper.terminate()
        self.code = self.wrapper.wait(DEADLINE)
        self.survivors = len(descendants())
        with open(f"{self.folder}/said", encoding="utf-8", errors="replace") as said:
            self.said = said.read()


def mib(size):
    return f"{size / MIB:,.0f}"


def table(before, after):
    def restart(phase, number):
        if phase is None or number not in phase.restarts:
            return "–"
        return " → ".join(mib(usage) for usage in phase.restarts[number])

    def both(of):
        return ["" if phase is None else of(phase) for phase in (before, after)]

    rows = [(f"restart {n}, MB", theirs, restart(before, n), wanted, restart(after, n)) for n, theirs, wanted in (
        (1, "500 → 900", "500 → 550"), (2, "900 → 1,300", "550 → 560"), (8, "7 → 9.7 GB", "600 → 610"),
        (50, "", "no more"), (after and max(after.restarts, default=0) or 0, "", "no more"))]  # fmt: skip
    for what, theirs, wanted, of in (
        ("agents at most", "9", "1–2", lambda p: str(p.observer.agents)),
        ("processes at most", "", "", lambda p: str(p.observer.processes)),
        ("memory at most, MB", "9,700", "", lambda p: mib(max(p.observer.usages))),
        ("the wrapper itself, MB", "", "< 200", lambda p: f"{max(p.observer.wrapper) / MIB:.1f}"),
        ("requests answered", "127", "all", lambda p: f"{p.counts['answered']:,} of {p.asked:,}"),
        ("refused in good order", "", "", lambda p: f"{p.counts['refused']:,}"),
        ("lost", "all others", "0", lambda p: f"{p.counts['lost']:,}"),
        ("killed by the kernel", "", "0", lambda p: str(p.kills)),
        ("left after its end", "", "0", lambda p: str(p.survivors)),
        ("seconds", "", "", lambda p: f"{p.seconds:.1f}"),
    ):
        one, other = both(of)
        rows.append((what, theirs, one, wanted, other))
    print(f"{'':<24}{'theirs':>13}{'before':>15}{'wanted':>12}{'after':>15}")
    for what, theirs, one, wanted, other in rows:
        print(f"{what:<24}{theirs:>13}{one:>15}{wanted:>12}{other:>15}")
    for name, phase in (("before", before), ("after", after)):
        if phase:
            print(f"memory {name:<7} {bars(phase.observer.usages)}")
    sys.stdout.flush()


def bars(usages):
    """The machine, from empty to full, over the phase's time."""
    count = min(66, len(usages))
    parts = [usages[len(usages) * n // count:max(len(usages) * (n + 1) // count, 1)] for n in range(count)]
    return "".join("▁▂▃▄▅▆▇█"[max(0, min(7, int(8 * max(part, default=0) / MACHINE)))] for part in parts)


def deaths(requests):
    """Messages that kill their agent: before its answer, and behind it, when the next one may have been handed to it."""
    return sum(n % 97 == 50 or n % 61 == 30 for n in range(1, requests + 1))


def promises_before(phase):
    return {
        f"the machine was filled: {mib(max(phase.observer.usages))} MiB": max(phase.observer.usages) >= 0.95 * MACHINE,
        f"agents were forgotten: {phase.observer.agents}": phase.observer.agents >= 8,
        f"in the end each request failed: {phase.counts}": phase.counts["lost"] >= GIVEN_UP,
        "and its health was blind to it": phase.health.get("status") == "healthy"
        and phase.health["memory"]["rss_mb"] * MIB < 0.1 * MACHINE,
    }


def promises_after(phase, requests):
    usages, counts, pool = phase.observer.usages, phase.counts, phase.pool
    half = len(usages) // 2
    first, second = (sorted(part)[len(part) // 2] for part in (usages[: half or 1], usages[half:]))
    return {
        f"each request was answered or refused in good order: {counts}": counts["lost"] == 0,
        f"refused was only whoever met a dying agent: {counts['refused']}": counts["refused"] <= deaths(requests),
        f"agents were replaced: {pool['recycled']} times": pool["recycled"] >= requests // 16,
        f"never more agents than allowed: {phase.observer.agents}": phase.observer.agents <= MOST_AGENTS,
        f"agents within their lines: {phase.observer.over} looks found more": phase.observer.over == 0,
        f"memory is flat: {mib(first)}, then {mib(second)} MiB": second <= first * 1.1 + 16 * MIB,
        f"all of it is within the lines: {mib(max(usages))} MiB": max(usages) <= MOST_AGENTS * LINE + 64 * MIB,
        f"plimsoll itself holds {max(phase.observer.wrapper) / MIB:.1f} MiB": max(phase.observer.wrapper) <= OURS,
        f"the kernel killed nobody: {phase.kills}": phase.kills == 0,
        f"nothing survived: {pool['survivors']} of the pool, {phase.survivors} of all":
            (pool["survivors"], phase.survivors, phase.code) == (0, 0, 0),
    }


def stop_on_signals():
    def stop(number, _):
        sys.exit(128 + number)

    for number in SIGNALS:
        signal.signal(number, stop)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=700, help="7000 are those of the night")
    parser.add_argument("--phase", choices=["before", "after", "both"], default="both")
    parser.add_argument("-v", action="store_true", help="what the wrapper said, too")
    args = parser.parse_args()
    plimsoll = shutil.which(os.environ.get("PLIMSOLL", "plimsoll"))
    if not plimsoll:
        sys.exit("run.py: error: there is no plimsoll here; the README says what is needed")
    if args.phase != "after" and not all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn")):
        sys.exit(f"run.py: error: {sys.executable} has no fastapi or no uvicorn; the README says how to get them")
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    stop_on_signals()
    print(f"A machine of {MACHINE // MIB} MiB, {args.requests:,} messages, an agent for {TURNS} of them.\n", flush=True)
    phases = {name: None for name in ("before", "after")}
    for name in phases:
        if args.phase in (name, "both"):
            try:
                phases[name] = Phase(os.path.abspath(plimsoll), args.requests, name == "after")
            except TimeoutError as what:
                print(f"FAILED: {name}: {what}\n0 passed, 1 failed")
                return 1
            if args.v:
                print(phases[name].said)
    table(**phases)
    promises = promises_before(phases["before"]) if phases["before"] else {}
    promises |= promises_after(phases["after"], args.requests) if phases["after"] else {}
    broken = [promise for promise, holds in promises.items() if not holds]
    for promise in broken:
        print(f"FAILED: {promise}")
    print(f"{len(promises) - len(broken)} passed, {len(broken)} failed")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
