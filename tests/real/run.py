#!/usr/bin/env python3
"""Real programs under a built plimsoll: a browser, interpreters, an interactive shell, a pager.

`PLIMSOLL` names the binary. Standard library alone. Prints PASS and FAIL lines and `N passed, N failed`.
Everything runs inside plimsoll with a line of its own.
"""

import fcntl
import json
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time

PLIMSOLL = os.environ.get("PLIMSOLL", "plimsoll")
DEADLINE = float(os.environ.get("PLIMSOLL_DEADLINE", "90"))
CASES = []


def case(function):
    CASES.append(function)
    return function


class Bench:
    """Directories of one case, and plimsoll in them."""

    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="plimsoll-real-")
        self.env = dict(
            os.environ,
            PLIMSOLL_STATE_DIR=os.path.join(self.dir, "state"),
            PLIMSOLL_RUNTIME_DIR=os.path.join(self.dir, "run"),
            PLIMSOLL_REAL_TAG=os.path.basename(self.dir),
        )

    def command(self, options, program):
        report = os.path.join(self.dir, "report")
        return [PLIMSOLL, "run", "--report", report, *options, "--", *program]

    def run(self, options, program, **more):
        try:
            done = subprocess.run(
                self.command(options, program), env=self.env, timeout=DEADLINE, capture_output=True, text=True, **more
            )
        except subprocess.TimeoutExpired as why:
            raise AssertionError(f"still running after {DEADLINE} s: {self.states()}; {why.stderr}") from why
        assert self.alive() == [], f"alive after the end: {self.alive()}"
        return done

    def report(self):
        with open(os.path.join(self.dir, "report"), encoding="utf-8") as file:
            return json.load(file)

    def alive(self):
        """Whoever carries our tag, but for this test itself."""
        mine = f"PLIMSOLL_REAL_TAG={self.env['PLIMSOLL_REAL_TAG']}".encode()
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/environ", "rb") as file:
                    if mine in file.read().split(b"\0"):
                        found.append(int(pid))
            except OSError:
                pass
        return found

    def states(self):
        """What each of them is doing, for a failure's message."""
        def read(path):
            try:
                with open(path, encoding="utf-8", errors="replace") as file:
                    return file.read()
            except OSError as why:
                return str(why)

        return [
            (pid, read(f"/proc/{pid}/stat")[:60], read(f"/proc/{pid}/stack").replace("\n", " < ")[:400])
            for pid in self.alive()
        ]

    def close(self):
        # Where a case killed all of plimsoll, any verb of the next one clears up.
        subprocess.run([PLIMSOLL, "explain"], env=self.env, capture_output=True, check=False)
        shutil.rmtree(self.dir, ignore_errors=True)


PAGE = """<!doctype html><title>real</title><div id=out></div><script>
let held = []; for (let n = 0; n < %d; n++) { const a = new Uint8Array(1 << 20); a.fill(n + 1); held.push(a); }
document.getElementById('out').textContent = 'held ' + held.length;
</script><iframe src="data:text/html,<p>a second renderer</p>"></iframe>"""


def browser(bench, megabytes):
    page = os.path.join(bench.dir, "page.html")
    with open(page, "w", encoding="utf-8") as file:
        file.write(PAGE % megabytes)
    return [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--site-per-process",
        f"--user-data-dir={bench.dir}/profile", "--disable-dev-shm-usage", "--virtual-time-budget=3000", "--dump-dom",
        f"file://{page}",
    ]


@case
def chromium_within_its_line(bench):
    done = bench.run(["-m", "2g", "--name", "browser"], browser(bench, 20))
    report = bench.report()
    assert done.returncode == 0, (done.returncode, done.stderr[-500:], report)
    assert "held 20" in done.stdout, done.stdout[-500:]
    assert report["cause"] == "exited" and report["tree"]["peak_processes"] >= 4, report


@case
def chromium_over_its_line(bench):
    bench.run(["-m", "300m", "--name", "browser"], browser(bench, 900))
    report = bench.report()
    assert report["cause"] == "memory_limit", report
    assert any("chrom" in one["command"] for one in report["memory"]["largest"]), report


@case
def chromium_loses_its_renderer_and_lives(bench):
    """The renderer goes, the browser stays and ends by itself or is stopped in time."""
    options = ["-m", "420m", "--on-limit", "largest", "--timeout", "20s", "--stop-timeout", "1s"]
    bench.run(options, browser(bench, 900))
    report = bench.report()
    assert report["tree"]["killed_inside"] >= 1, report
    assert report["exit"]["signal"] != 9 or report["cause"] == "timeout", report


CAPTURE = """
import resource, subprocess, sys
how = sys.argv[1]
child = [sys.executable, "-c", "import sys\\nline = b'x' * 65535 + b'\\\\n'\\nfor n in range(%d): sys.stdout.buffer.write(line)" % int(sys.argv[2])]
if how == "captured":
    subprocess.run(child, capture_output=True, check=True)
else:
    subprocess.run(child, check=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=sys.stderr)
"""


@case
def output_captured_inherited_and_logged(bench):
    """1 GB of a child's output: what the parent and the tree need to hold for it, by what becomes of it."""
    lines = 1 << 14
    rows = []
    for how, options in (("captured", []), ("inherited", []), ("logged", ["--log-file", f"{bench.dir}/log"])):
        program = [sys.executable, "-c", CAPTURE, how, str(lines)]
        with open(os.devnull, "wb") as nowhere:
            done = subprocess.run(
                bench.command(["-m", "3g", *options], program), env=bench.env, timeout=DEADLINE, check=False,
                stdout=nowhere, stderr=subprocess.PIPE, text=True,
            )
        report = bench.report()
        assert report["cause"] == "exited", (done.stderr, report)
        if how == "logged":
            # Its stderr is in the log as well: the last line there.
            with open(f"{bench.dir}/log", "rb") as log:
                log.seek(-64, os.SEEK_END)
                parent = int(log.read().split()[-1])
        else:
            parent = int(done.stderr.split()[0])
        tree = max(sample["memory_bytes"] for sample in report["memory"]["last_minute"])
        rows.append((how, parent, tree))
    print("  1 GB of output   parent's peak   tree's highest sample (page cache of files included)")
    for how, parent, tree in rows:
        print(f"  {how:<16} {parent / 2**20:9.0f} MiB {tree / 2**20:11.0f} MiB")
    by_name = {how: parent for how, parent, _ in rows}
    assert by_name["captured"] > 1 << 30, rows
    assert by_name["inherited"] < 64 << 20 and by_name["logged"] < 64 << 20, rows


@case
def node_over_its_line(bench):
    # In one go: a slow growth may end in endless re-reading of node's own file pages, which no kernel calls an OOM.
    script = "const held = []; for (;;) held.push(Buffer.alloc(256 << 20, 1));"
    done = bench.run(["-m", "160m"], ["node", "-e", script])
    report = bench.report()
    assert done.returncode == 137 and report["cause"] == "memory_limit", (done.returncode, report)
    assert "node" in report["memory"]["largest"][0]["command"], report


@case
def node_with_children(bench):
    script = "const {spawn}=require('child_process'); for(let n=0;n<4;n++) spawn('sleep',['60'],{detached:true}).unref(); setTimeout(()=>process.exit(7),200)"
    done = bench.run(["-m", "512m"], ["node", "-e", script])
    assert done.returncode == 7, (done.returncode, done.stderr)


class Terminal:
    """A program on a terminal of its own, as a person has it: typed to and read from."""

    def __init__(self, bench, program, rows=24, columns=80):
        self.output = b""
        # All of it, also what was waited for.
        self.seen = b""
        self.bench = bench
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(bench.env, PS1="$ ", TERM="xterm", HISTFILE="/dev/null")
            os.execvp(program[0], program)
        self.resize(rows, columns)

    def resize(self, rows, columns):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text):
        os.write(self.fd, text.encode())

    def wait_for(self, text):
        """Reads until the text appears behind what was waited for before."""
        until = time.monotonic() + DEADLINE
        wanted = text.encode()
        while wanted not in self.output:
            left = until - time.monotonic()
            ready, _, _ = select.select([self.fd], [], [], max(left, 0))
            assert ready, f"{text!r} did not come: {self.output[-800:]!r}"
            try:
                more = os.read(self.fd, 4096)
            except OSError:
                more = b""
            assert more, f"the terminal closed before {text!r}: {self.output[-800:]!r}"
            self.output += more
            self.seen += more
        self.output = self.output[self.output.index(wanted) + len(wanted):]

    def end(self):
        """Its exit code."""
        until = time.monotonic() + DEADLINE
        while time.monotonic() < until:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
            try:
                if select.select([self.fd], [], [], 0.02)[0]:
                    more = os.read(self.fd, 4096)
                    self.output += more
                    self.seen += more
            except OSError:
                time.sleep(0.02)
        states = self.bench.states()
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError(f"it did not end: {self.output[-800:]!r} {states}")


@case
def an_interactive_shell(bench):
    """Prompt, window size, Ctrl-C, Ctrl-Z and fg inside a shell that plimsoll holds."""
    shell = Terminal(bench, bench.command(["-m", "256m"], ["bash", "--norc", "--noprofile", "-i"]), 31, 97)
    shell.wait_for("$ ")
    shell.type("stty size; tty >/dev/null && echo is-a-$((40+2))\n")
    shell.wait_for("31 97")
    shell.wait_for("is-a-42")
    shell.resize(20, 66)
    shell.type("stty size\n")
    shell.wait_for("20 66")
    shell.type("sleep 77; echo after-$?\n")
    wait_for_child(bench, "sleep")
    shell.type("\x03")
    shell.wait_for("^C")
    shell.wait_for("$ ")
    shell.type("sleep 78; echo then-$?\n")
    wait_for_child(bench, "sleep")
    shell.type("\x1a")
    shell.wait_for("Stopped")
    shell.type("kill -KILL %1; while jobs | grep -q Stopped; do sleep 0.1; done; echo gone-$((1+1))\n")
    shell.wait_for("gone-2")
    shell.type("exit 9\n")
    assert shell.end() == 9
    assert bench.alive() == []


def wait_for_child(bench, name):
    until = time.monotonic() + DEADLINE
    while time.monotonic() < until:
        for pid in bench.alive():
            try:
                with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
                    if file.read().strip() == name:
                        return pid
            except OSError:
                pass
        time.sleep(0.01)
    raise AssertionError(f"no {name}")


@case
def a_job_of_a_shell(bench):
    """plimsoll as a job: Ctrl-Z stops it with its tree and gives the prompt back, fg goes on, Ctrl-C reaches the root."""
    shell = Terminal(bench, ["bash", "--norc", "--noprofile", "-i"])
    shell.wait_for("$ ")
    words = " ".join(bench.command(["-m", "64m"], ["sleep", "79"]))
    shell.type(words + "\n")
    sleeper = wait_for_child(bench, "sleep")
    shell.type("\x1a")
    shell.wait_for("Stopped")
    state = open(f"/proc/{sleeper}/stat", encoding="utf-8").read().split()[2]
    assert state == "T", state
    shell.type("fg\n")
    until = time.monotonic() + DEADLINE
    while open(f"/proc/{sleeper}/stat", encoding="utf-8").read().split()[2] == "T":
        assert time.monotonic() < until, "it was not continued"
        time.sleep(0.01)
    shell.type("\x03")
    shell.type("echo code-$?\n")
    shell.wait_for("code-130")
    shell.type("exit\n")
    shell.end()
    assert bench.alive() == []


@case
def a_pager(bench):
    text = os.path.join(bench.dir, "text")
    with open(text, "w", encoding="utf-8") as file:
        file.writelines(f"line {n} of the text\n" for n in range(1000))
    pager = Terminal(bench, bench.command(["-m", "64m"], ["less", text]))
    pager.wait_for("line 20 of")
    pager.type(" ")
    pager.wait_for("line 40 of")
    pager.type("/line 777\n")
    pager.wait_for("line 777")
    pager.type("q")
    assert pager.end() == 0
    assert bench.alive() == []


@case
def a_terminal_of_its_own(bench):
    """With --idle-timeout the streams are seen, and a terminal stays a terminal."""
    shell = Terminal(bench, bench.command(["--idle-timeout", "60s"], ["bash", "--norc", "--noprofile", "-i"]), 25, 91)
    shell.wait_for("$ ")
    shell.type("stty size; echo typed-$((5*5))\n")
    shell.wait_for("25 91")
    shell.wait_for("typed-25")
    shell.resize(30, 70)
    time.sleep(0.3)
    shell.type("stty size\n")
    shell.wait_for("30 70")
    shell.type("sleep 80\n")
    wait_for_child(bench, "sleep")
    shell.type("\x03")
    shell.wait_for("$ ")
    shell.type("exit 4\n")
    assert shell.end() == 4
    idle = Terminal(bench, bench.command(["--idle-timeout", "300ms"], ["cat"]))
    assert idle.end() == 124


def outer_shell(bench):
    shell = Terminal(bench, ["bash", "--norc", "--noprofile", "-i"])
    shell.wait_for("$ ")
    return shell


def started(shell, bench, options, program, name):
    """Types a run into a shell and waits until a program of this name is there."""
    words = " ".join(f"'{word}'" for word in bench.command(options, program))
    shell.type(words + "\n")
    return wait_for_child(bench, name)


def wait_for_state(pid, wanted):
    until = time.monotonic() + DEADLINE
    while True:
        state = open(f"/proc/{pid}/stat", encoding="utf-8").read().rpartition(")")[2].split()[0]
        if state in wanted:
            return
        assert time.monotonic() < until, f"{pid} is {state}, wanted one of {wanted}"
        time.sleep(0.01)


def wait_for_foreground(pid):
    """A shell names the job before it gives it the terminal."""
    until = time.monotonic() + DEADLINE
    while True:
        fields = open(f"/proc/{pid}/stat", encoding="utf-8").read().rpartition(")")[2].split()
        if fields[2] == fields[5]:
            return
        assert time.monotonic() < until, f"{pid} does not get the terminal"
        time.sleep(0.01)


def assert_sane(shell, word):
    """The prompt is back and the terminal is one that a shell can use."""
    shell.type("stty -a\n")
    for mode in ("\nopost", " icanon", " echo "):
        shell.wait_for(mode)
    shell.type(f"echo {word}-$((40+2))\n")
    shell.wait_for(f"{word}-42")


def left(shell, bench):
    shell.type("exit\n")
    shell.end()
    assert bench.alive() == [], bench.states()


WAYS = ([], ["--idle-timeout", "60s"])


@case
def stopped_and_continued_at_a_terminal(bench):
    """Ctrl-Z, a sane shell, fg and Ctrl-C, whether or not plimsoll stands between."""
    for options in WAYS:
        shell = outer_shell(bench)
        cat = started(shell, bench, options, ["cat"], "cat")
        shell.type("one\n")
        shell.wait_for("one\r\none")
        for word in ("again", "and-again"):
            shell.type("\x1a")
            shell.wait_for("Stopped")
            wait_for_state(cat, "T")
            assert_sane(shell, "shell")
            shell.type("fg\n")
            wait_for_state(cat, "SR")
            shell.type(word + "\n")
            shell.wait_for(f"{word}\r\n{word}")
        shell.type("\x04")
        shell.wait_for("$ ")
        shell.type("echo code-$?\n")
        shell.wait_for("code-0")
        shell.wait_for("$ ")
        sleeper = started(shell, bench, options, ["sh", "-c", "while :; do sleep 1; done"], "sleep")
        shell.type("\x1a")
        shell.wait_for("Stopped")
        wait_for_state(sleeper, "T")
        shell.type("bg\n")
        assert_sane(shell, "beside")
        front = parent(parent(parent(sleeper)))
        shell.type("fg\n")
        wait_for_foreground(front)
        shell.type("\x03")
        shell.wait_for("$ ")
        shell.type("echo code-$?\n")
        shell.wait_for("code-130")
        left(shell, bench)


def stop_less(shell):
    # A Ctrl-Z while it draws its screen is lost on less, whoever started it.
    time.sleep(0.5)
    shell.type("\x1a")
    shell.wait_for("Stopped")


@case
def a_pager_is_stopped_and_continued(bench):
    text = os.path.join(bench.dir, "text")
    with open(text, "w", encoding="utf-8") as file:
        file.writelines(f"line {n} of the text\n" for n in range(1000))
    for options in WAYS:
        shell = outer_shell(bench)
        started(shell, bench, options, ["less", text], "less")
        shell.wait_for("line 20 of")
        stop_less(shell)
        assert_sane(shell, "shell")
        shell.type("fg\n")
        shell.wait_for("line 20 of")
        shell.type(" ")
        shell.wait_for("line 40 of")
        shell.type("q")
        shell.wait_for("$ ")
        assert_sane(shell, "shell")
        left(shell, bench)


@case
def a_shell_inside_has_its_own_jobs(bench):
    """Ctrl-Z in an inner shell stops the inner job, `suspend` the inner shell."""
    for options in WAYS:
        shell = outer_shell(bench)
        started(shell, bench, options, ["env", "PS1=in$ ", "bash", "--norc", "--noprofile", "-i"], "bash")
        shell.wait_for("in$ ")
        shell.type("sleep 81\n")
        sleeper = wait_for_child(bench, "sleep")
        shell.type("\x1a")
        shell.wait_for("Stopped")
        shell.wait_for("in$ ")
        shell.type("fg\n")
        wait_for_foreground(sleeper)
        shell.type("\x03")
        shell.wait_for("in$ ")
        shell.type("suspend\n")
        shell.wait_for("Stopped")
        assert_sane(shell, "outer")
        shell.type("fg\n")
        shell.wait_for("in$ ")
        shell.type("echo inner-$((1+2)); exit\n")
        shell.wait_for("inner-3")
        shell.wait_for("$ ")
        left(shell, bench)


@case
def a_job_in_the_background(bench):
    """A job that reads in the background is stopped, and does not take what is typed to the shell."""
    for options in WAYS:
        shell = outer_shell(bench)
        words = " ".join(bench.command(options, ["cat"]))
        shell.type(words + " &\n")
        wait_for_state(wait_for_child(bench, "cat"), "T")
        assert_sane(shell, "shell")
        shell.type("fg\n")
        shell.wait_for("cat")
        shell.type("one\n")
        shell.wait_for("one\r\none")
        shell.type("\x04")
        shell.wait_for("$ ")
        left(shell, bench)


@case
def a_pager_beside_plimsoll(bench):
    """Before or behind a pipe the terminal is shared with a program that is not plimsoll's."""
    for options in WAYS:
        for words in (
            " ".join(bench.command(options, ["seq", "1", "1000"])) + " | less",
            "seq 1 1000 | " + " ".join(bench.command(options, ["less"])),
        ):
            shell = outer_shell(bench)
            shell.type(words + "\n")
            shell.wait_for("\r\n20")
            shell.type(" ")
            shell.wait_for("\r\n40")
            stop_less(shell)
            assert_sane(shell, "shell")
            shell.type("fg\n")
            shell.wait_for("\r\n40")
            shell.type(" ")
            shell.wait_for("\r\n60")
            shell.type("q")
            shell.wait_for("$ ")
            left(shell, bench)


@case
def each_stream_goes_where_it_went(bench):
    """Every combination of the terminal and a file: the same is a terminal to the child, and the words arrive there."""
    script = (
        'for fd in 0 1 2; do test -t $fd; printf "$?" >&3; done; read word; echo "out $word"; echo "err $word" >&2;'
        " test -t 3"
    )
    for options in WAYS:
        for redirected in range(8):
            path = [os.path.join(bench.dir, f"stream-{n}") for n in range(4)]
            with open(path[0], "w", encoding="utf-8") as file:
                file.write("filed\n")
            files = [f"{'<>>'[n]} {path[n]}" if redirected >> n & 1 else "" for n in range(3)]
            files[2] = files[2] and "2" + files[2]
            words = " ".join(f"'{word}'" for word in bench.command([*options, "-q"], ["sh", "-c", f"exec 3>{path[3]}; {script}"]))
            terminal = Terminal(bench, ["sh", "-c", f"{words} {' '.join(files)}; echo the-end"])
            word = "filed" if redirected & 1 else "typed"
            terminal.type("typed\n")
            terminal.wait_for("the-end")
            read = lambda n: open(path[n], encoding="utf-8").read()
            assert read(3) == "".join(str(redirected >> n & 1) for n in range(3)), (options, redirected, read(3))
            for n, text in ((1, f"out {word}\n"), (2, f"err {word}\n")):
                if redirected >> n & 1:
                    assert read(n) == text, (options, redirected, n, read(n))
                    os.remove(path[n])
            terminal.end()
            for n, text in ((1, f"out {word}"), (2, f"err {word}")):
                shown = text.encode() in terminal.seen
                assert shown != bool(redirected >> n & 1), (options, redirected, n, terminal.seen)


@case
def the_terminal_comes_back_whoever_is_killed(bench):
    """The keeper, the front: the shell's prompt stands on a sane terminal."""
    for victim in ("keeper", "front"):
        shell = outer_shell(bench)
        cat = started(shell, bench, ["--idle-timeout", "60s"], ["cat"], "cat")
        shell.type("one\n")
        shell.wait_for("one\r\none")
        keeper = parent(cat)
        os.kill(keeper if victim == "keeper" else parent(keeper), signal.SIGKILL)
        shell.wait_for("$ ")
        assert_sane(shell, victim)
        wait_until_gone(keeper)
        left(shell, bench)


def wait_until_gone(pid):
    until = time.monotonic() + DEADLINE
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < until, f"{pid} does not end"
        time.sleep(0.01)


def parent(pid):
    return int(open(f"/proc/{pid}/stat", encoding="utf-8").read().rpartition(")")[2].split()[1])


@case
def the_terminal_comes_back_from_what_was_killed(bench):
    """A shell inside that is ended has the terminal in its own modes and its own group; a script goes on after it."""
    for options in WAYS:
        inner = ["bash", "--norc", "--noprofile", "-i"]
        words = " ".join(bench.command([*options, "-q", "--timeout", "1s", "--stop-timeout", "0s"], inner))
        script = f"{words}; stty -a; read word; echo read-$word"
        terminal = Terminal(bench, ["sh", "-c", script])
        terminal.wait_for("$ ")
        terminal.wait_for(" icanon")
        terminal.type("something\n")
        terminal.wait_for("read-something")
        assert terminal.end() == 0
    # A program that ended by itself keeps what it set.
    words = " ".join(bench.command([], ["stty", "-echo"]))
    terminal = Terminal(bench, ["sh", "-c", f"{words}; stty -a"])
    terminal.wait_for(" -echo ")
    assert terminal.end() == 0


@case
def a_stopped_job_ends_in_time(bench):
    """The time limit of a job that Ctrl-Z stopped: the shell is told of the end without fg."""
    for options in WAYS:
        shell = outer_shell(bench)
        cat = started(shell, bench, [*options, "--timeout", "2s", "-q"], ["cat"], "cat")
        front = parent(parent(cat))
        shell.type("\x1a")
        shell.wait_for("Stopped")
        wait_until_gone(front)
        shell.type("wait %1; echo code-$?\n")
        shell.wait_for("code-124")
        left(shell, bench)


def main():
    wanted = sys.argv[1:]
    passed = failed = 0
    for function in CASES:
        if wanted and not any(word in function.__name__ for word in wanted):
            continue
        bench = Bench()
        try:
            function(bench)
            passed += 1
            print(f"PASS {function.__name__}", flush=True)
        except (AssertionError, OSError, subprocess.SubprocessError, ValueError, KeyError) as why:
            failed += 1
            print(f"FAIL {function.__name__}: {type(why).__name__}: {why}", flush=True)
        finally:
            for pid in bench.alive():
                os.kill(pid, signal.SIGKILL)
            bench.close()
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
