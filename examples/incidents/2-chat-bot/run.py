#!/usr/bin/env python3
"""Incident 2 again, a quarter of its size: a chat bot whose agents outlive their sessions, before Plimsoll and after.

A memory group of our own (`plimsoll-example-…`, 486 MiB, no swap) stands in for the server of 1.9 GiB in both phases, and a
session lives for seconds instead of half an hour. $PLIMSOLL names the plimsoll binary, else it is found in PATH. Needs root,
and a python3 with fastapi and uvicorn. Exit code 1 when a promise did not hold.

With `--container IMAGE` it is played at its own size instead, in a container of that image (see Dockerfile), with plimsoll as
process 1, which is restarted and killed within turns. Needs Docker on this machine, and to see its processes.
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
MACHINE = 486 * MIB
ROOMS = 10
TTL = 3  # seconds
HOURS = (0, 1, 2, 8)  # what the rounds stand for
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
        self.machine, self.stop, self.usages, self.agents = machine, threading.Event(), [], 0

    def run(self):
        while not self.stop.wait(0.1):
            self.usages.append(self.machine.usage())
            self.agents = max(self.agents, len(agents()))


def agents():
    """Those that run; what one starts is for a moment as its parent is."""
    all_of_them = descendants()
    is_agent = {pid for pid, (_, command) in all_of_them.items() if command.endswith("agent.py")}
    return [pid for pid in is_agent if all_of_them[pid][0] not in is_agent]


def ask(port, room, text):
    """The status and the body; `(0, why)` without an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    body = {"creator": {"id": 1, "name": "Test"}, "room": {"id": room, "name": "Test"}, "content": text}
    try:
        connection.request("POST", "/webhook/bot", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, http.client.HTTPException) as why:
        return 0, f"{type(why).__name__}: {why}"
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


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


class Phase:
    """One of the two, played: all that was measured."""

    def __init__(self, plimsoll, after):
        self.right, self.failed, self.presentations, self.forgotten, self.at, self.idle = 0, 0, [0, 0], 0, {}, 0
        self.after_kill = self.known_after_kill = None
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # what is made from here on is also removed
        self.machine = Machine()
        self.folder = tempfile.mkdtemp(prefix="plimsoll-example-")
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            self.play(plimsoll, after)
        finally:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)  # the end is not cut short
            end_all()
            self.machine.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            stop_on_signals()

    def start(self, command):
        with open(f"{self.folder}/said", "a", encoding="utf-8") as said:
            process = subprocess.Popen(
                command, env=self.env, cwd=self.folder, preexec_fn=self.machine.enter, start_new_session=True,
                stdout=said, stderr=said, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        wait_for("it listens", lambda: listens(self.port))
        return process

    def play(self, plimsoll, after):
        os.chmod(self.folder, 0o755)
        for name in ("agent.py", "before.py", "plimsoll.yaml"):  # where an agent with a user of its own may read it
            shutil.copy(f"{HERE}/{name}", self.folder)
        self.port = free_port()
        self.env = dict(
            os.environ, PORT=str(self.port), TTL=str(TTL), PYTHONDONTWRITEBYTECODE="1",
            PATH=f"/usr/bin:{os.environ['PATH']}",  # the system's python3, which an agent with a user of its own may read
            PLIMSOLL_CGROUP_PARENT=f"/{self.machine.group}",
            PLIMSOLL_STATE_DIR=f"{self.folder}/state", PLIMSOLL_RUNTIME_DIR=f"{self.folder}/run",
        )  # fmt: skip
        command = [plimsoll, "up"] if after else [sys.executable, f"{self.folder}/before.py", "--port", str(self.port)]
        # What else there is on the server.
        base = "import time; base = bytearray(b'\\1') * (20 << 20); time.sleep(86400)"
        subprocess.Popen(["/usr/bin/python3", "-c", base], preexec_fn=self.machine.enter, start_new_session=True)
        server = self.start(command)
        observer = Observer(self.machine)
        observer.start()
        for number, hour in enumerate(HOURS):
            for room in range(ROOMS):
                self.talk(room, number + 1)
                if number == 0 and room == 0:
                    self.at["first"] = len(agents())
                time.sleep(0.1)
            self.at[hour] = len(agents())
            time.sleep(TTL + 1)
        self.idle, self.left = self.machine.usage(), len(agents())
        if after:  # both of its processes at once, within a turn: nobody is there to see to the agent
            ask(self.port, 0, "Test once more")
            threading.Thread(target=ask, args=(self.port, 1, "a presentation"), daemon=True).start()
            tools = lambda: sum("time; more" in command for _, command in descendants().values())
            wait_for("its tool server", tools)
            ours = [pid for pid, (_, command) in descendants().items() if command.endswith(" up")]
            for number in (signal.SIGSTOP, signal.SIGKILL):  # so that neither has time to do the other's work
                for pid in ours:
                    os.kill(pid, number)
            server.wait()
            wait_for("the end of both", lambda: not set(ours) & descendants().keys())
            self.orphans = tools()  # the kernel ends the agent itself with its parent
            server = self.start(command)
            self.after_kill = len(agents()) + tools()
            self.known_after_kill = ask(self.port, 0, "Test after it")
        observer.stop.set()
        observer.join()
        self.usages, self.most = observer.usages, observer.agents
        self.kills = self.machine.kills()
        server.terminate()
        server.wait(DEADLINE)
        self.survivors = len(descendants()) - 1  # the base
        with open(f"{self.folder}/said", encoding="utf-8", errors="replace") as said:
            self.said = said.read()

    def talk(self, room, number):
        is_long = room % 3 == 2
        text = f"a <b>presentation</b> {number}" if is_long else f"Test {number}"
        status, body = ask(self.port, room, text)
        good = status == 200 and body.startswith(f"<p>{text}</p>")
        self.right, self.failed = self.right + good, self.failed + (not good)
        self.presentations = [self.presentations[0] + (is_long and good), self.presentations[1] + is_long]
        self.forgotten += good and not body.endswith(f"<!-- {number} -->")


def mib(size):
    return f"{size / MIB:,.0f}"


def table(before, after):
    def both(of):
        return ["" if phase is None else of(phase) for phase in (before, after)]

    print(f"{'':<30}{'theirs':>14}{'before':>10}{'wanted':>8}{'after':>10}")
    for what, theirs, wanted, of in (
        ("idle, MB", "836", "250", lambda p: mib(p.idle)),
        ("peak, MB", "1,500–1,800", "400", lambda p: mib(max(p.usages))),
        ("agents after one message", "1", "0–1", lambda p: str(p.at["first"])),
        *((f"agents at hour {h}", n, "0–1", lambda p, h=h: str(p.at[h])) for h, n in zip(HOURS, ("1", "3", "5", "10+"))),
        ("agents when all is quiet", "5", "0–1", lambda p: str(p.left)),
        ("messages answered", "", "all", lambda p: f"{p.right} of {p.right + p.failed}"),
        ("presentations completed", "50 %", "all", lambda p: f"{p.presentations[0]} of {p.presentations[1]}"),
        ("killed by the kernel", "", "0", lambda p: str(p.kills)),
        ("left after kill -9 and start", "", "0", lambda p: "" if p.after_kill is None else str(p.after_kill)),
        ("left after its end", "", "0", lambda p: str(p.survivors)),
    ):
        one, other = both(of)
        print(f"{what:<30}{theirs:>14}{one:>10}{wanted:>8}{other:>10}")
    for name, phase in (("before", before), ("after", after)):
        if phase:
            print(f"memory {name:<7} {bars(phase.usages)}")
    sys.stdout.flush()


def bars(usages):
    """The machine, from empty to full, over the phase's time."""
    count = min(66, len(usages))
    parts = [usages[len(usages) * n // count:max(len(usages) * (n + 1) // count, 1)] for n in range(count)]
    return "".join("▁▂▃▄▅▆▇█"[max(0, min(7, int(8 * max(part, default=0) / MACHINE)))] for part in parts)


def promises_before(phase):
    return {
        f"the server was filled: {mib(max(phase.usages))} MiB": max(phase.usages) >= 0.95 * MACHINE,
        f"agents outlive their sessions: {phase.left}": phase.left >= 5,
        f"messages failed: {phase.failed}": phase.failed > 0 and phase.kills > 0,
    }


def promises_after(phase):
    return {
        f"every message was answered: {phase.failed} not": phase.failed == 0,
        f"every room's conversation went on: {phase.forgotten} not": phase.forgotten == 0,
        f"never more than one agent: {phase.most}": phase.most <= 1,
        f"none when all is quiet: {phase.left}": phase.left == 0,
        f"the peak is at most the wanted 400 MB / 4 and what else there is: {mib(max(phase.usages))} MiB":
            max(phase.usages) <= 200 * MIB,
        f"nobody was killed: {phase.kills}": phase.kills == 0,
        f"kill -9 left {phase.orphans}, and the sweep at the next start {phase.after_kill}":
            (phase.orphans, phase.after_kill) == (1, 0) and "swept" in phase.said,
        f"and the conversation goes on: {phase.known_after_kill}":
            phase.known_after_kill[0] == 200 and phase.known_after_kill[1].endswith(f"<!-- {len(HOURS) + 2} -->"),
        f"nothing survived: {phase.survivors}": phase.survivors == 0,
    }


class Contained:
    """The bot in a container of 1.9 GiB: a life of it after the other, and what was seen of each."""

    SIZE, ROOMS = "1946m", 5

    def __init__(self, image, more):
        self.port, self.name, self.lives = free_port(), f"plimsoll-chat-bot-{os.getpid()}", []
        self.told = dict.fromkeys(range(self.ROOMS), 0)
        try:
            # Nobody starts it anew behind our back, and what it leaves in its own files is there after the next start.
            self.id = docker(
                "run", "--detach", "--name", self.name, "--network", "host", "--memory", self.SIZE, "--memory-swap", self.SIZE,
                "--pids-limit", "512", "--env", f"PORT={self.port}", "--env", "TTL=300", *more, image,
            )  # fmt: skip
            self.begin("docker run")
            self.round()
            # Each of the three comes in the middle of a presentation.
            self.end("restart", "-t", "20")
            self.begin("docker restart")
            self.end("kill", "--signal", "KILL")
            docker("start", self.name)
            self.begin("docker kill, start")
            self.end("stop", "-t", "20")
            wait_for("the container's end", lambda: not self.members())
            self.code, self.was_oom = docker(
                "inspect", "--format", "{{.State.ExitCode}} {{.State.OOMKilled}}", self.name
            ).split()
            self.said = docker("logs", self.name, check=False)
        except (TimeoutError, subprocess.CalledProcessError):
            print(docker("logs", self.name, check=False))
            raise
        finally:
            docker("rm", "--force", "--volumes", self.name, check=False)

    def members(self):
        """All in the container as this machine sees them, pid: command line."""
        found = {}
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            try:
                with open(f"/proc/{pid}/cgroup", encoding="ascii") as file:
                    if self.id in file.read():
                        found[pid] = command_of(pid)
            except OSError:
                pass
        return found

    def begin(self, how):
        """It is there; what is there before anybody asks; and that every room's conversation goes on."""
        wait_for("it listens", lambda: listens(self.port))
        members = self.members()
        self.first = int(docker("inspect", "--format", "{{.State.Pid}}", self.name))
        life = {"how": how, "left": len(members) - 2, "first": members.get(self.first, "")}  # its own two are no one's
        self.lives.append({**life, "asked": 0, "right": 0, "known": 0, "agents": 0, "peak": 0})
        self.round()

    def round(self):
        life = self.lives[-1]
        for room in self.told:
            self.told[room] += 1
            text = f"Test {self.told[room]}"
            status, body = ask(self.port, room, text)
            life["asked"] += 1
            life["right"] += status == 200 and body.startswith(f"<p>{text}</p>")
            life["known"] += body.endswith(f"<!-- {self.told[room]} -->")
            # Not those who keep one, in whose command it stands as well.
            commands = self.members().values()
            is_agent = [command.endswith("agent.py 4") and " run " not in command for command in commands]
            life["agents"] = max(life["agents"], sum(is_agent))

    def end(self, *words):
        # In a room of its own: a turn that is cut off is not told to have been asked.
        talk = threading.Thread(target=ask, args=(self.port, 99, "a presentation"), daemon=True)
        talk.start()
        wait_for("its tool server", lambda: any("time; more" in command for command in self.members().values()))
        self.lives[-1]["peak"] = self.peak()
        before = self.members()
        docker(*words, self.name)
        talk.join(DEADLINE)
        wait_for("the end of all", lambda: not before.keys() & self.members().keys())

    def peak(self):
        with open(f"/proc/{self.first}/cgroup", encoding="ascii") as file:
            groups = dict(line.strip().split(":", 2)[1:] for line in file)
        v1, v2 = groups.get("memory"), groups.get("")
        names = [f"/sys/fs/cgroup/memory{v1}/memory.max_usage_in_bytes", f"/sys/fs/cgroup{v2}/memory.peak"]
        for name in names:
            if os.path.exists(name):
                with open(name, encoding="ascii") as file:
                    return int(file.read())
        return 0

    def table(self):
        print(f"{'':<22}{'left of before':>15}{'most agents':>13}{'answered':>11}{'known':>10}{'peak, MB':>10}")
        for life in self.lives:
            answered, known = (f"{life[key]} of {life['asked']}" for key in ("right", "known"))
            print(f"{life['how']:<22}{life['left']:>15}{life['agents']:>13}{answered:>11}{known:>10}{mib(life['peak']):>10}")
        sys.stdout.flush()

    def promises(self):
        total = {key: sum(life[key] for life in self.lives) for key in ("left", "asked", "right", "known")}
        most = max(life["agents"] for life in self.lives)
        peak = max(life["peak"] for life in self.lives)
        return {
            "plimsoll is process 1 of each life": all(" up" in life["first"] for life in self.lives),
            f"nobody is there before the first question: {total['left']} were": total["left"] == 0,
            f"every message was answered: {total['right']} of {total['asked']}": total["right"] == total["asked"] == 20,
            f"every room's conversation went on: {total['known']} of {total['asked']}": total["known"] == total["asked"],
            f"never more than one agent: {most}": most == 1,
            f"a stop ends it well: {self.code}, killed for memory: {self.was_oom}": (self.code, self.was_oom) == ("0", "false"),
            f"less than half of it is ever held: {mib(peak)} MiB": 0 < peak <= 973 * MIB,
        }


def docker(*words, check=True):
    done = subprocess.run(
        ["docker", *words], check=check, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=None if check else subprocess.STDOUT, text=True,
    )  # fmt: skip
    return done.stdout.strip()


def stop_on_signals():
    def stop(number, _):
        sys.exit(128 + number)

    for number in SIGNALS:
        signal.signal(number, stop)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phase", choices=["before", "after", "both"], default="both")
    parser.add_argument("-v", action="store_true", help="what the bot said, too")
    parser.add_argument("--container", metavar="IMAGE", help="the container form, of this image")
    parser.add_argument("--docker-run", metavar="ARG", action="append", default=[], help="another argument of `docker run`")
    args = parser.parse_args()
    if args.container:
        return main_contained(args)
    plimsoll = shutil.which(os.environ.get("PLIMSOLL", "plimsoll"))
    if not plimsoll:
        sys.exit("run.py: error: there is no plimsoll here; the README says what is needed")
    if args.phase != "after" and not all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn")):
        sys.exit(f"run.py: error: {sys.executable} has no fastapi or no uvicorn; the README says how to get them")
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    stop_on_signals()
    print(f"A server of {MACHINE // MIB} MiB, {ROOMS} rooms, {len(HOURS)} rounds, sessions of {TTL} s.\n", flush=True)
    phases = {name: None for name in ("before", "after")}
    for name in phases:
        if args.phase in (name, "both"):
            try:
                phases[name] = Phase(os.path.abspath(plimsoll), name == "after")
            except TimeoutError as what:
                print(f"FAILED: {name}: {what}\n0 passed, 1 failed")
                return 1
            if args.v:
                print(phases[name].said)
    table(**phases)
    promises = promises_before(phases["before"]) if phases["before"] else {}
    promises |= promises_after(phases["after"]) if phases["after"] else {}
    return judge(promises)


def main_contained(args):
    if not shutil.which("docker"):
        sys.exit("run.py: error: there is no docker here; the README says what is needed")
    stop_on_signals()
    print(f"A container of {Contained.SIZE}, plimsoll as process 1, {Contained.ROOMS} rooms.\n", flush=True)
    try:
        phase = Contained(args.container, args.docker_run)
    except (TimeoutError, subprocess.CalledProcessError) as what:
        print(f"FAILED: {what}\n0 passed, 1 failed")
        return 1
    if args.v:
        print(phase.said)
    phase.table()
    return judge(phase.promises())


def judge(promises):
    broken = [promise for promise, holds in promises.items() if not holds]
    for promise in broken:
        print(f"FAILED: {promise}")
    print(f"{len(promises) - len(broken)} passed, {len(broken)} failed")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
