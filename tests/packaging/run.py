#!/usr/bin/env python3
"""What surrounds `plimsoll up`: the background, the service manager, Prometheus, process 1 of a container.

`PLIMSOLL` names the binary. Needs root (groups), promtool and prometheus_client (Debian: prometheus,
python3-prometheus-client), systemd-analyze and unshare. Prints PASS and FAIL lines and `N passed, N failed`.
"""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

PLIMSOLL = os.path.abspath(shutil.which(os.environ.get("PLIMSOLL", "plimsoll")) or "plimsoll")
DEADLINE = float(os.environ.get("PLIMSOLL_DEADLINE", "90"))
PACKAGING = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "packaging")
CASES = []


def case(function):
    CASES.append(function)
    return function


def until(what, holds):
    """Waits until something holds, and answers it; long enough for any machine."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        found = holds()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"still not after {DEADLINE} s: {what}")


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="utf-8") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def is_zombie(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


class Control(http.client.HTTPConnection):
    """The control socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=DEADLINE)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(DEADLINE)
        self.sock.connect(self.path)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Bench:
    """Directories of one case, and plimsoll in them."""

    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="plimsoll-packaging-")
        self.run_dir = os.path.join(self.dir, "run")
        self.env = dict(
            os.environ,
            PLIMSOLL_STATE_DIR=os.path.join(self.dir, "state"),
            PLIMSOLL_RUNTIME_DIR=self.run_dir,
            PLIMSOLL_PACKAGING_TAG=os.path.basename(self.dir),
        )
        for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
            self.env.pop(name, None)
        self.started = []

    def file(self, services, budget="256m", name="plimsoll.yaml"):
        path = os.path.join(self.dir, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"budget: {{ memory: {budget} }}\nservices:\n")
            for service, spec in services.items():
                file.write(f"  {service}: {json.dumps(spec)}\n")
        return path

    def plimsoll(self, *args, **env):
        return subprocess.run(
            [PLIMSOLL, *args], env={**self.env, **env}, cwd=self.dir, timeout=DEADLINE, capture_output=True, text=True
        )

    def start(self, *words, **env):
        with open(os.path.join(self.dir, "said"), "a", encoding="utf-8") as said:
            process = subprocess.Popen(
                words, env={**self.env, **env}, cwd=self.dir, stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
        self.started.append(process)
        return process

    def said(self):
        with open(os.path.join(self.dir, "said"), encoding="utf-8") as file:
            return file.read()

    def ask(self, path):
        control = Control(os.path.join(self.run_dir, "control.sock"))
        try:
            control.request("GET", path)
            response = control.getresponse()
            return response.status, response.read().decode()
        finally:
            control.close()

    def health(self):
        try:
            status, text = self.ask("/health")
            return status, json.loads(text)["status"]
        except (OSError, http.client.HTTPException, ValueError):
            return None, None

    def guard(self):
        with open(os.path.join(self.dir, "state", "up.lock"), encoding="utf-8") as file:
            return int(file.read())

    def alive(self):
        """Whoever carries our tag, but for this test itself."""
        mine = f"PLIMSOLL_PACKAGING_TAG={self.env['PLIMSOLL_PACKAGING_TAG']}".encode()
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/environ", "rb") as file:
                    if mine in file.read().split(b"\0"):
                        found.append(int(pid))
            except OSError:
                pass
        return found

    def down(self):
        done = self.plimsoll("down")
        assert done.returncode == 0, done
        assert self.alive() == [], self.alive()

    def close(self):
        if os.path.exists(os.path.join(self.run_dir, "control.sock")):
            self.plimsoll("down")
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()
        # Where a case killed all of plimsoll, any verb of the next one clears up.
        self.plimsoll("explain")
        shutil.rmtree(self.dir, ignore_errors=True)


SLEEPER = {"command": ["sleep", "inf"], "mem_limit": "16m"}
NEVER_WELL = {"test": ["CMD", "false"], "start_period": "10m", "interval": "1s"}


# -- the background

@case
def in_the_background_it_returns_when_all_have_started(bench):
    services = {
        "late": {**SLEEPER, "healthcheck": {"test": ["CMD", "test", "-e", "well"], "interval": "1s",
                                            "start_period": "1m", "start_interval": "100ms"}},
        "maker": {"command": ["sh", "-c", "sleep 0.5; touch well"], "mem_limit": "16m"},
        "after": {**SLEEPER, "depends_on": {"late": {"condition": "service_healthy"}}},
        "bad": {"command": ["sh", "-c", "exit 3"], "mem_limit": "16m", "restart": "on-failure:1"},
        "missing": {"command": ["/nonexistent/program"], "mem_limit": "16m"},
    }
    bench.file(services)
    done = bench.plimsoll("up", "-d")
    assert done.returncode == 0, done
    for line in ["late/1 starting", "late/1 is healthy", "after/1 started", "bad/1 has failed"]:
        assert f"plimsoll: {line}" in done.stderr, (line, done.stderr)
    assert "after/1" in done.stdout and "MEMORY" in done.stdout, done.stdout
    guard = bench.guard()
    (supervisor,) = children(guard)
    for pid in (guard, supervisor):
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert [os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)] == ["/dev/null"] * 3
        assert os.getsid(pid) == pid and os.getsid(0) != pid
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            assert file.read().rpartition(")")[2].split()[4] == "0", "a terminal"
    with open(os.path.join(bench.dir, "state", "up.log"), encoding="utf-8") as file:
        assert "Z after/1 started, pid " in file.read()
    # The file is found again from another working directory.
    again = bench.plimsoll("up", "-d")
    assert (again.returncode, again.stdout) == (0, "no service has changed\n"), again
    bench.down()


@case
def one_state_directory_has_one_up(bench):
    bench.file({"one": SLEEPER})
    assert bench.plimsoll("up", "-d").returncode == 0
    other = os.path.join(bench.dir, "other")
    for options in ([], ["-d"]):
        done = bench.plimsoll("up", *options, PLIMSOLL_RUNTIME_DIR=other)
        assert done.returncode == 1 and f"in use by another plimsoll up (pid {bench.guard()})" in done.stderr, done
    # Neither of its processes, nor anything that it started, holds the lock in another's stead.
    for _ in range(5):
        bench.down()
        done = bench.plimsoll("up", "-d")
        assert done.returncode == 0, done
    (supervisor,) = children(bench.guard())
    (service,) = [pid for pid in children(supervisor) if not is_zombie(pid)]
    held = [os.readlink(f"/proc/{service}/fd/{fd}") for fd in os.listdir(f"/proc/{service}/fd")]
    assert not any(name.startswith(bench.dir) for name in held), held
    bench.down()


@case
def what_goes_wrong_reaches_the_terminal(bench):
    wrong = os.path.join(bench.dir, "wrong.yaml")
    with open(wrong, "w", encoding="utf-8") as file:
        file.write("services: { a: { comand: [x] } }\n")
    done = bench.plimsoll("up", "-d", "-f", wrong)
    assert done.returncode == 2 and "a similar key exists: `command`" in done.stderr, done
    bench.file({"slow": {**SLEEPER, "healthcheck": NEVER_WELL}})
    done = bench.plimsoll("up", "-d", "--wait", "1s")
    assert done.returncode == 1 and "not everything has come up within 1s" in done.stderr, done
    assert bench.health() == (503, "starting") and bench.ask("/ready")[0] == 503
    bench.down()
    done = bench.plimsoll("up", "--wait", "1s")
    assert done.returncode == 2, done
    # The control socket's place is taken by a directory: that is found after the fork.
    os.makedirs(os.path.join(bench.run_dir, "control.sock", "x"))
    done = bench.plimsoll("up", "-d")
    assert done.returncode == 1 and "control.sock" in done.stderr, done
    shutil.rmtree(os.path.join(bench.run_dir, "control.sock"))
    assert bench.alive() == []


@case
def a_supervisor_that_is_killed_while_it_starts(bench):
    bench.file({"slow": {**SLEEPER, "healthcheck": NEVER_WELL}})
    up = bench.start(PLIMSOLL, "up", "-d")
    until("it starts", lambda: bench.health() == (503, "starting"))
    (supervisor,) = children(bench.guard())
    os.kill(supervisor, signal.SIGKILL)
    assert up.wait(DEADLINE) == 1 and "it has ended before everything was up" in bench.said(), bench.said()
    until("nothing is left", lambda: bench.alive() == [])
    assert bench.plimsoll("up", "-d", "--wait", "1s").returncode == 1
    bench.down()


# -- the service manager

class Manager:
    """A service manager's socket."""

    def __init__(self, name):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(name.replace("@", "\0", 1) if name.startswith("@") else name)
        self.heard = []

    def hear(self, seconds):
        """All lines of the next so many seconds."""
        end = time.monotonic() + seconds
        lines = []
        while (left := end - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                lines += self.socket.recv(4096).decode().splitlines()
            except TimeoutError:
                break
        self.heard += lines
        return lines

    def wait_for(self, line):
        before = []
        def comes():
            before.extend(self.hear(0.05))
            return line in before
        until(f"{line} (it said {self.heard})", comes)
        return before


def service_manager(bench, name):
    bench.file({"a": {"command": ["sh", "-c", "env > env; exec sleep inf"], "mem_limit": "16m",
                      "healthcheck": {"test": ["CMD", "test", "-e", "well"], "interval": "1s", "start_period": "5m",
                                      "start_interval": "100ms"}}})
    manager = Manager(name)
    # A manager sets WATCHDOG_PID for the process that it starts; a shell that execs keeps its pid.
    up = bench.start("sh", "-c", 'WATCHDOG_PID=$$ exec "$0" up', PLIMSOLL, NOTIFY_SOCKET=name, WATCHDOG_USEC="2000000")
    until("it runs", lambda: os.path.exists(os.path.join(bench.dir, "env")))
    lines = manager.hear(3)
    assert "READY=1" not in lines and "WATCHDOG=1" in lines, lines
    assert any(line.startswith("STATUS=0 of 1 replicas run") for line in lines), lines
    open(os.path.join(bench.dir, "well"), "w", encoding="utf-8").close()
    manager.wait_for("READY=1")
    with open(os.path.join(bench.dir, "env"), encoding="utf-8") as file:
        inherited = file.read()
    assert not re.search("^(NOTIFY_SOCKET|WATCHDOG_)", inherited, re.M), inherited
    os.kill(up.pid, signal.SIGHUP)
    assert "RELOADING=1" in manager.wait_for("READY=1")
    (supervisor,) = children(up.pid)
    os.kill(supervisor, signal.SIGSTOP)
    manager.hear(0.2)
    assert manager.hear(3) == [], "nobody speaks for a loop that hangs"
    os.kill(supervisor, signal.SIGCONT)
    manager.wait_for("WATCHDOG=1")
    os.kill(up.pid, signal.SIGTERM)
    manager.wait_for("STOPPING=1")
    assert up.wait(DEADLINE) == 0


@case
def a_service_manager_at_a_path(bench):
    service_manager(bench, os.path.join(bench.dir, "notify"))


@case
def a_service_manager_at_an_abstract_name(bench):
    service_manager(bench, f"@{os.path.basename(bench.dir)}")


@case
def the_unit_is_understood_by_systemd(bench):
    with open(os.path.join(PACKAGING, "systemd", "plimsoll.service"), encoding="utf-8") as file:
        unit = file.read()
    assert unit.count("/usr/local/bin/plimsoll ") == 2
    path = os.path.join(bench.dir, "plimsoll.service")
    with open(path, "w", encoding="utf-8") as file:
        file.write(unit.replace("/usr/local/bin/plimsoll ", f"{PLIMSOLL} "))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", path], capture_output=True, text=True, timeout=DEADLINE
    )
    assert done.returncode == 0 and done.stderr == "", done


# -- health and metrics

@case
def health_in_a_word(bench):
    well = {"test": ["CMD", "test", "-e", "well"], "interval": "1s", "start_period": "5m", "start_interval": "100ms"}
    file = {"a": {**SLEEPER, "healthcheck": well, "stop_grace_period": "3s"}}
    file["a"]["command"] = ["sh", "-c", "trap '' TERM; while :; do sleep 0.2; done"]
    bench.file(file)
    up = bench.start(PLIMSOLL, "up")
    until("it starts", lambda: bench.health() == (503, "starting"))
    assert bench.ask("/ready")[0] == 503
    open(os.path.join(bench.dir, "well"), "w", encoding="utf-8").close()
    until("it is ok", lambda: bench.health() == (200, "ok"))
    status, text = bench.ask("/ready")
    assert (status, json.loads(text)["ready"]) == (200, True)
    memory = json.loads(bench.ask("/health")[1])["memory"]
    assert 0 < memory["self_rss_mb"] < memory["rss_mb"] < 256, memory
    status = json.loads(bench.plimsoll("status", "--json").stdout)
    assert status["troubles"] == [], status
    # Given up: degraded, and work is taken all the same.
    bench.file({**file, "b": {"command": ["false"], "mem_limit": "16m", "restart": "on-failure:1"}})
    assert bench.plimsoll("up").returncode == 0
    until("it is degraded", lambda: bench.health() == (200, "degraded"))
    assert bench.ask("/ready")[0] == 200
    bench.file(file)
    assert bench.plimsoll("up").returncode == 0
    until("it is ok again", lambda: bench.health() == (200, "ok"))
    # A public port that somebody has is a trouble.
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        bench.file({**file, "c": {**SLEEPER, "listen": f"127.0.0.1:{port}"}})
        assert bench.plimsoll("up").returncode == 0
        until("it is degraded", lambda: bench.health() == (200, "degraded"))
        troubles = json.loads(bench.plimsoll("status", "--json").stdout)["troubles"]
        assert [trouble.partition(":")[0] for trouble in troubles] == ["the port of c"], troubles
    until("the port is free", lambda: bench.health() == (200, "ok"))
    os.kill(up.pid, signal.SIGTERM)
    until("it stops", lambda: bench.health() == (503, "stopping"))
    assert bench.ask("/ready")[0] == 503
    assert up.wait(DEADLINE) == 0


def check_metrics(text):
    """By promtool's conventions and by a real parser; answers the samples."""
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 0 and done.stdout + done.stderr == "", done
    from prometheus_client.parser import text_string_to_metric_families

    samples = {}
    for family in text_string_to_metric_families(text):
        assert family.name.startswith("plimsoll_") and family.documentation, family
        assert family.type in ("gauge", "counter", "histogram"), family
        for sample in family.samples:
            key = (sample.name, *sorted(sample.labels.items()))
            assert key not in samples, f"twice: {key}"
            samples[key] = sample.value
    return samples


@case
def metrics_as_prometheus_has_them(bench):
    # Its alerts carry whatever may need an escape.
    path = bench.file({
        "web": {"command": ["python3", "-m", "http.server", "${PORT}"], "mem_limit": "64m", "listen": f"127.0.0.1:{free_port()}",
                "cpus": 1, "restart": "always", "deploy": {"replicas": 2}},
        "oom": {"command": ["sh", "-c", "sleep 0.2; tail /dev/zero"], "mem_limit": "16m", "restart": "on-failure:1"},
    })
    with open(path, "a", encoding="utf-8") as file:
        file.write("alerts: [{ when: \"service web rss > 60m\", for: 10s }]\n")
    assert bench.plimsoll("up", "-d").returncode == 0
    until("it was given up", lambda: "failed" in bench.plimsoll("status").stdout)
    before = check_metrics(bench.ask("/metrics")[1])
    def value(samples, name, **labels):
        return samples[(name, *sorted(labels.items()))]
    assert value(before, "plimsoll_service_oom_kills_total", service="oom") == 2
    assert value(before, "plimsoll_service_restarts_total", service="oom") == 1
    assert value(before, "plimsoll_ends_total", cause="memory_limit") == 2
    assert value(before, "plimsoll_service_state", service="oom", replica="1", state="failed") == 1
    assert value(before, "plimsoll_service_state", service="web", replica="2", state="running") == 1
    assert value(before, "plimsoll_service_limit_bytes", service="web", replica="1") == 64 << 20
    assert value(before, "plimsoll_service_cpu_seconds_total", service="web") > 0
    assert value(before, "plimsoll_budget_limit_bytes") == 256 << 20
    assert value(before, "plimsoll_alert_firing", alert="service web rss > 60m") == 0
    # Counters outlive replicas that are scaled away and replaced.
    for replicas in ("1", "3", "1"):
        assert bench.plimsoll("scale", f"web={replicas}").returncode == 0
        after = check_metrics(bench.ask("/metrics")[1])
        for key, count in before.items():
            if key[0].endswith("_total"):
                assert after[key] >= count, (key, count, after[key])
        before = after
    bench.down()
    # Some counters outlive the supervisor.
    assert bench.plimsoll("up", "-d").returncode == 0
    after = check_metrics(bench.ask("/metrics")[1])
    assert value(after, "plimsoll_service_oom_kills_total", service="oom") >= 2
    bench.down()


@case
def alert_rules_are_right_and_about_metrics_that_exist(bench):
    rules = os.path.join(PACKAGING, "prometheus", "alerts.yml")
    for verb in (["check", "rules", rules], ["test", "rules", rules.replace(".yml", ".test.yml")]):
        done = subprocess.run(["promtool", *verb], capture_output=True, text=True, timeout=DEADLINE)
        assert done.returncode == 0, done
    bench.file({"a": {**SLEEPER, "listen": f"127.0.0.1:{free_port()}"}})
    assert bench.plimsoll("up", "-d").returncode == 0
    exist = set(re.findall("^# TYPE (plimsoll_[a-z0-9_]+)", bench.ask("/metrics")[1], re.M))
    bench.down()
    with open(rules, encoding="utf-8") as file:
        meant = {name for line in re.findall("(?:expr:|^ {10}[(/s]).*", file.read(), re.M)
                 for name in re.findall("plimsoll_[a-z0-9_]+", line)}
    assert len(meant) > 12 and meant <= exist, meant - exist


# -- process 1

def no_zombie_stays(pids):
    """Whoever is dead is waited for: nobody is found dead twice."""
    seen = set()
    for _ in range(15):
        dead = {child for pid in pids for child in children(pid) if is_zombie(child)}
        assert not (dead & seen), dead & seen
        seen = dead
        time.sleep(0.2)


def as_init(bench, *words):
    """Plimsoll as process 1 of its own; its pid out here."""
    unshare = bench.start("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", PLIMSOLL, *words)
    (init,) = until("it is there", lambda: children(unshare.pid))
    return unshare, init


def adopt(init):
    """Leaves orphans with process 1, as somebody who was let into a container does."""
    for _ in range(5):
        subprocess.run(["nsenter", "--target", str(init), "--pid", "--mount", "sh", "-c", "(sleep 0.1 &)"], check=True)


ORPHANS = ["sh", "-c", "while :; do (sleep 0.05 &); (setsid sleep 0.05 &); sleep 0.1; done"]


@case
def up_as_process_1_reaps_orphans(bench):
    bench.file({"orphans": {"command": ORPHANS, "mem_limit": "32m"}})
    unshare, init = as_init(bench, "up")
    until("it is up", lambda: bench.health() == (200, "ok"))
    adopt(init)
    (supervisor,) = [child for child in children(init) if children(child)]
    no_zombie_stays([init, supervisor])
    os.kill(init, signal.SIGTERM)
    assert unshare.wait(DEADLINE) == 0, bench.said()
    assert bench.alive() == []


@case
def run_as_process_1_reaps_orphans(bench):
    unshare, init = as_init(bench, "run", "-m", "32m", "--", *ORPHANS)
    (keeper,) = until("it runs", lambda: [child for child in children(init) if children(child)])
    adopt(init)
    no_zombie_stays([init, keeper])
    os.kill(init, signal.SIGTERM)
    assert unshare.wait(DEADLINE) == 128 + signal.SIGTERM, bench.said()
    assert bench.alive() == []


def main():
    chosen = [function for function in CASES if not sys.argv[1:] or function.__name__ in sys.argv[1:]]
    passed = failed = 0
    for function in chosen:
        bench = Bench()
        try:
            function(bench)
            passed += 1
            print(f"PASS {function.__name__}", flush=True)
        except (AssertionError, OSError, KeyError, ValueError, subprocess.SubprocessError) as why:
            failed += 1
            print(f"FAIL {function.__name__}: {type(why).__name__}: {why}", flush=True)
        finally:
            bench.close()
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
