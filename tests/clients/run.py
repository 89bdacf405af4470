#!/usr/bin/env python3
"""Clients that people use against the pools of `plimsoll up`: the OpenAI SDKs of Python and of Node, `llm`, and the SDK's own
tests of chat completions, which come with its sources.

`PLIMSOLL` and `PLIMSOLL_TESTKIT` name the binaries, `PLIMSOLL_CLIENTS` the folder that the clients are installed into when
they are missing (target/xtask/clients). Needs root, python3 with venv, node and npm. Prints PASS and FAIL lines and
`N passed, N failed`.
"""

import collections
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
FOLDER = os.environ.get("PLIMSOLL_CLIENTS", os.path.join(HERE, "..", "..", "target", "xtask", "clients"))
FOLDER = os.path.abspath(FOLDER)
VENV, NPM = os.path.join(FOLDER, "venv"), os.path.join(FOLDER, "npm")
OPENAI = "3.57.0"
PYPI = [f"openai[aiohttp]=={OPENAI}", "llm==0.36", "claude-agent-sdk==0.2.189", "h11==0.16.0"]
# What the SDK's own tests need besides.
PYPI += ["pytest==9.2.0", "pytest-asyncio==1.5.0", "rich==15.0.0"]
SOURCES = os.path.join(FOLDER, f"openai-{OPENAI}")
NODE = "openai@7.59.0"


def install():
    """The clients, when these versions are not there; then goes on as the Python that has them."""
    mark, wanted = os.path.join(FOLDER, "installed"), " ".join([*PYPI, NODE])
    try:
        with open(mark, encoding="utf-8") as file:
            is_there = file.read() == wanted
    except OSError:
        is_there = False
    if not is_there:
        shutil.rmtree(FOLDER, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        pip = [os.path.join(VENV, "bin", "pip"), "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *PYPI], check=True)
        unpack(pip[0])
        npm = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", "--prefix", NPM, NODE]
        subprocess.run(npm, check=True)
        with open(mark, "w", encoding="utf-8") as file:
            file.write(wanted)
    if os.path.abspath(sys.prefix) != VENV:
        python = os.path.join(VENV, "bin", "python")
        os.execv(python, [python, *sys.argv])


def unpack(pip):
    """The SDK's own tests: only its sources have them."""
    sources = [pip, "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary", "openai"]
    subprocess.run([*sources, "--dest", FOLDER, f"openai=={OPENAI}"], check=True)
    with tarfile.open(f"{SOURCES}.tar.gz") as archive:
        wanted = (f"openai-{OPENAI}/tests/", f"openai-{OPENAI}/pyproject.toml")
        members = [one for one in archive if one.isfile() and one.name.startswith(wanted) and ".." not in one.name]
        archive.extractall(FOLDER, members)


if __name__ == "__main__":
    install()

import openai  # noqa: E402, of the installed ones
import published  # noqa: E402, which needs them
from openai import OpenAI  # noqa: E402
from pydantic import BaseModel, ValidationError  # noqa: E402

PLIMSOLL = os.path.abspath(shutil.which(os.environ.get("PLIMSOLL", "plimsoll")) or "plimsoll")
AGENT = os.path.abspath(os.environ.get("PLIMSOLL_TESTKIT", "plimsoll-testkit"))
DEADLINE = float(os.environ.get("PLIMSOLL_DEADLINE", "90"))
CASES = []
MODELS = ("lines", "claude")
# To each plimsoll one, on which all that clients were told is looked at in the end.
LINES = []


def case(function):
    CASES.append(function)
    return function


def until(what, holds):
    """Waits until something holds, and answers it; long enough for any machine."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if found := holds():
            return found
        time.sleep(0.02)
    raise AssertionError(f"still not after {DEADLINE} s: {what}")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Bench:
    """One plimsoll with its pools, for all cases; each takes sessions of its own."""

    def __init__(self, pools=None):
        self.dir = tempfile.mkdtemp(prefix="plimsoll-clients-")
        os.chmod(self.dir, 0o755)
        self.port = free_port()
        self.line = published.Line(self.port)
        LINES.append(self.line)
        self.base = f"http://127.0.0.1:{self.line.port}/v1"
        self.env = dict(
            os.environ,
            PLIMSOLL_STATE_DIR=os.path.join(self.dir, "state"),
            PLIMSOLL_RUNTIME_DIR=os.path.join(self.dir, "run"),
            LLM_USER_PATH=os.path.join(self.dir, "llm"),
        )
        agent = lambda protocol, *more: [AGENT, "agent", "--protocol", protocol, *more]
        pool = {"mem_limit": "48m", "max_sessions": 4, "isolation": "none", "idle_ttl": "5m"}
        pools = pools or {
            "lines": {**pool, "command": agent("jsonl"), "protocol": "jsonl", "warm": 1, "models": ["gpt-lines"]},
            "claude": {**pool, "command": agent("claude"), "protocol": "claude", "warm": 1, "models": ["haiku"]},
            # One seat and hardly a queue: whoever comes second is told to come again.
            "narrow": {**pool, "command": agent("jsonl"), "protocol": "jsonl", "max_sessions": 1,
                       "idle_ttl": "100ms", "queue": {"max": 1, "timeout": "100ms"}},
        }
        with open(os.path.join(self.dir, "plimsoll.yaml"), "w", encoding="utf-8") as file:
            json.dump({"budget": {"memory": "1g"}, "pools": pools, "gateway": {"listen": f"127.0.0.1:{self.port}"}}, file)
        done = self.plimsoll("up", "-d")
        assert done.returncode == 0, done
        until("it listens", lambda: self.get("/health")[0])

    def plimsoll(self, *args):
        return subprocess.run(
            [PLIMSOLL, *args], env=self.env, cwd=self.dir, timeout=DEADLINE, capture_output=True, text=True
        )

    def get(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return None, ""
        finally:
            connection.close()

    def pool(self, name):
        pools = json.loads(self.plimsoll("status", "--json").stdout)["pools"]
        return next(pool for pool in pools if pool["name"] == name)

    def client(self, **options):
        always = {"base_url": self.base, "api_key": "none", "timeout": DEADLINE, "_strict_response_validation": True}
        return OpenAI(**{**always, "max_retries": 0, **options})

    def node(self, what):
        script = ["node", os.path.join(HERE, "client.cjs"), what, self.base]
        done = subprocess.run(
            script, env={**self.env, "NODE_PATH": os.path.join(NPM, "node_modules")}, timeout=DEADLINE,
            capture_output=True, text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def close(self):
        done = self.plimsoll("down")
        self.line.close()
        shutil.rmtree(self.dir, ignore_errors=True)
        mine, left = self.dir.encode(), []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/environ", "rb") as file:
                    if mine in file.read() and int(pid) != os.getpid():
                        left.append(int(pid))
            except OSError:
                pass
        return done.returncode, left


def user(text):
    return [{"role": "user", "content": text}]


def streamed(lines):
    """The text of a stream's lines, each looked at, its usage, and how many pieces it came in."""
    chunks, failed = published.stream([line for line in lines if line])
    assert failed is None, failed
    pieces = [chunk.choices[0] for chunk in chunks if chunk.choices]
    return "".join(piece.delta.content or "" for piece in pieces), chunks[-1].usage, len(pieces)


def complete(client, model, text, **options):
    messages = text if isinstance(text, list) else user(text)
    response = client.chat.completions.with_raw_response.create(model=model, messages=messages, **options)
    return published.completion(json.loads(response.text() if callable(response.text) else response.text))


def said(client, model, text, **options):
    return complete(client, model, text, **options).choices[0].message.content


def refused(kind, call):
    """The error that the SDK raises, whose body is looked at; and the answer's headers."""
    try:
        got = call()
    except kind as why:
        assert type(why) is kind, f"{type(why).__name__}: {why}"
        published.error(why.response.json())
        return why
    raise AssertionError(f"no {kind.__name__}, but {got}")


# -- the SDK of Python

@case
def a_completion(bench):
    for model in ("lines", "gpt-lines", "claude", "haiku"):
        answer = complete(bench.client(), model, "how is it going")
        assert answer.choices[0].message.content == "echo: how is it going" and answer.model == model, answer
        assert answer.usage.prompt_tokens == 4 and answer.usage.completion_tokens == 5, answer.usage


@case
def fields_that_mean_nothing_here(bench):
    more = dict(
        temperature=0.5, top_p=1, seed=1, stop=["x"], presence_penalty=0, frequency_penalty=0, logit_bias={"1": 1},
        max_tokens=5, max_completion_tokens=5, logprobs=False, n=1, user="u", store=False, service_tier="auto",
        parallel_tool_calls=True, reasoning_effort="low", extra_body={"anything": [1, {"else": None}]},
    )
    for model in MODELS:
        assert said(bench.client(), model, "hi", **more) == "echo: hi"


@case
def messages_of_all_kinds(bench):
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}], "name": "u"},
        {"role": "assistant", "content": "three"},
        {"role": "user", "content": "grüße 😀"},
    ]
    assert said(bench.client(), "lines", messages) == "echo: grüße 😀"
    assert "grüße 😀" in said(bench.client(), "claude", messages)


@case
def a_stream(bench):
    for model in MODELS:
        for include_usage in (False, True):
            options = {"stream_options": {"include_usage": True}} if include_usage else {}
            create = bench.client().chat.completions.with_streaming_response.create
            with create(model=model, messages=user("!deltas 5\nall in pieces"), stream=True, **options) as response:
                assert response.headers["content-type"].startswith("text/event-stream"), response.headers
                text, usage, pieces = streamed(response.iter_lines())
            assert text == "echo: all in pieces" and pieces >= 7, (text, pieces)
            assert (usage and usage.completion_tokens) == (4 if include_usage else None), usage
        # And as programs read it.
        stream = bench.client().chat.completions.create(model=model, messages=user("hi"), stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "echo: hi"


@case
def words_come_when_they_are_said(bench):
    for model in MODELS:
        stream = bench.client().chat.completions.create(
            model=model, messages=user("!deltas 4\n!pace 300ms\nslow words"), stream=True
        )
        times = [time.monotonic() for chunk in stream if chunk.choices[0].delta.content]
        assert times[-1] - times[0] >= 0.8, times


@case
def a_session_by_header_and_by_metadata(bench):
    client = bench.client()
    for model in MODELS:
        header = {"extra_headers": {"X-Session-Id": f"header-{model}"}}
        metadata = {"metadata": {"session_id": f"metadata-{model}"}}
        pids = []
        for options in (header, metadata):
            first = said(client, model, "pid", **options)
            assert said(client, model, "pid", **options) == first, "a conversation keeps its process"
            assert said(client, model, "turns", **options) == "3"
            pids.append(first)
        assert pids[0] != pids[1], "two conversations share no process"
        # A client that sends all it knows is asked for what is new.
        key = {"extra_headers": {"X-Session-Id": f"history-{model}"}}
        known = user("one")
        known += [{"role": "assistant", "content": said(client, model, known, **key)}, *user("two")]
        known += [{"role": "assistant", "content": said(client, model, known, **key)}, *user("history")]
        assert said(client, model, known, **key) == "one | two | history"


@case
def without_a_session_nothing_is_shared(bench):
    for model in MODELS:
        pids = [said(bench.client(), model, "pid") for _ in range(3)]
        assert len(set(pids)) == 3, pids


@case
def an_answer_of_json(bench):
    asked = {"response_format": {"type": "json_object"}}
    for model in MODELS:
        client = bench.client()
        assert json.loads(said(client, model, '!say {"a": 1}\nhi', **asked)) == {"a": 1}
        fenced = '!say Here it is: {"a": [1, 2]}. More?\nhi'
        assert json.loads(said(client, model, fenced, **asked)) == {"a": [1, 2]}
        # Wrong at first, and asked once more.
        assert json.loads(said(client, model, '!say no idea\n!next {"b": 2}\nhi', **asked)) == {"b": 2}
        why = refused(openai.InternalServerError, lambda: said(client, model, "!say no\n!next never\nhi", **asked))
        assert why.status_code == 502 and "response_format" in why.message, why


class Step(BaseModel):
    name: str
    minutes: int


class Recipe(BaseModel):
    title: str
    steps: list[Step]


@case
def an_answer_by_a_schema(bench):
    right = json.dumps({"title": "tea", "steps": [{"name": "boil", "minutes": 3}]})
    wrong = json.dumps({"title": "tea", "steps": [{"name": "boil", "minutes": "three"}]})
    for model in MODELS:
        for text in (f"!say {right}\nhi", f"!say {wrong}\n!next {right}\nhi"):
            # The SDK makes the schema of the class, and reads the answer into one.
            parsed = bench.client().chat.completions.parse(model=model, messages=user(text), response_format=Recipe)
            assert parsed.choices[0].message.parsed == Recipe.model_validate_json(right), parsed
        fails = lambda: bench.client().chat.completions.parse(
            model=model, messages=user(f"!say {wrong}\n!next {wrong}\nhi"), response_format=Recipe
        )
        why = refused(openai.InternalServerError, fails)
        assert why.status_code == 502 and "minutes" in why.message, why
        with bench.client().chat.completions.stream(
            model=model, messages=user(f"!say {right}\nhi"), response_format=Recipe
        ) as stream:
            assert stream.get_final_completion().choices[0].message.parsed.steps[0].minutes == 3


@case
def an_answer_of_json_that_is_asked_for_again(bench):
    """As an SDK does whose connection broke: it gets the answer of the turn that runs, and of one that was just over."""
    for model in MODELS:
        key = {"X-Session-Id": f"json-again-{model}"}
        asked = {"response_format": {"type": "json_object"}, "text": '!say no idea\n!next {"b": 2}\n!sleep 700ms\nhi'}
        answers = {}
        def ask(count):
            headers = {**key, "X-Stainless-Retry-Count": str(count)}
            answers[count] = complete(bench.client(), model, extra_headers=headers, **asked)
        threads = [threading.Thread(target=ask, args=(count,)) for count in range(3)]
        for thread in threads:
            thread.start()
            until("it runs", lambda: bench.pool(model)["busy"] == 1)
        for thread in threads:
            thread.join()
        ask(3)
        assert {answer.choices[0].message.content for answer in answers.values()} == {'{"b": 2}'}, answers
        # What was asked twice of the agent costs what both cost.
        usages = [answer.usage for answer in answers.values()]
        assert usages == usages[:1] * 4 and usages[0].completion_tokens == 4, usages
        # Two turns of the agent's, and one of the conversation's.
        assert said(bench.client(), model, "turns", extra_headers=key) == "3"
        # But a question that is no retry is asked.
        ask(0)
        assert said(bench.client(), model, "turns", extra_headers=key) == "6"


@case
def models(bench):
    raw = bench.client().models.with_raw_response.list()
    published.models(json.loads(raw.text() if callable(raw.text) else raw.text))
    assert [model.id for model in bench.client().models.list()] == ["claude", "haiku", "lines", "gpt-lines", "narrow"]
    assert bench.client().models.retrieve("haiku").id == "haiku"
    refused(openai.NotFoundError, lambda: bench.client().models.retrieve("none"))


@case
def errors_have_their_class(bench):
    client = bench.client()
    why = refused(openai.NotFoundError, lambda: complete(client, "none", "hi"))
    assert (why.code, why.param) == ("model_not_found", "model"), why
    for param, options in {
        "messages": {"messages": []},
        "messages[0].role": {"messages": [{"role": "nobody", "content": "x"}]},
        "stream": {"extra_body": {"stream": "yes"}},
        "response_format": {"response_format": {"type": "yaml"}},
    }.items():
        call = lambda: client.chat.completions.create(**{"model": "lines", "messages": user("hi"), **options})
        why = refused(openai.BadRequestError, call)
        assert (why.param or "").startswith(param), (param, why)
    refused(openai.BadRequestError, lambda: client.post("/chat/completions", cast_to=object, content=b"{\"model\":"))
    refused(openai.NotFoundError, lambda: client.embeddings.create(model="lines", input="x"))


@case
def a_turn_that_failed_is_not_run_again(bench):
    """The SDK tries again on its own after a 5xx, which would have the agent do its work twice."""
    client = bench.client(max_retries=2)
    for model in MODELS:
        for number, deed in enumerate(("!error it was too much", "!exit 3", "!sleep 100ms\n!exit 0")):
            key = {"X-Session-Id": f"fails-{model}-{number}"}
            before = json.loads(bench.get("/health")[1])["stats"]["total_requests"]
            why = refused(
                openai.InternalServerError, lambda: complete(client, model, f"{deed}\nhi", extra_headers=key)
            )
            after = json.loads(bench.get("/health")[1])["stats"]["total_requests"]
            assert why.status_code == 502 and why.code == "agent_failed", (deed, why)
            assert after - before == 1, f"{deed!r} was asked for {after - before} times"
            # The conversation goes on.
            assert said(client, model, "still there", extra_headers=key) == "echo: still there" or model == "claude"


@case
def what_fails_in_the_middle_of_a_stream(bench):
    for model in MODELS:
        stream = bench.client(max_retries=2).chat.completions.create(
            model=model, messages=user("!deltas 4\n!cut 3\nsome words that never end"), stream=True
        )
        text = ""
        try:
            for chunk in stream:
                text += chunk.choices[0].delta.content or ""
        except openai.APIError as why:
            assert "the agent did not answer" in why.message and text, (why, text)
            continue
        raise AssertionError(f"no error, but {text!r}")


@case
def whoever_is_told_to_come_again_does(bench):
    """429 with Retry-After: the SDK waits as long and then has its answer, and the turn ran once."""
    for keys in ({}, {"extra_headers": {"X-Session-Id": "patient"}}):
        slow = threading.Thread(target=lambda: said(bench.client(), "narrow", "!sleep 1500ms\nhi"))
        slow.start()
        until("it is busy", lambda: bench.pool("narrow")["busy"] == 1)
        why = refused(openai.RateLimitError, lambda: said(bench.client(), "narrow", "hi"))
        wait = int(why.response.headers["retry-after"])
        assert 1 <= wait <= 120, why.response.headers
        began = time.monotonic()
        assert said(bench.client(max_retries=5), "narrow", "turns", **keys) == "1"
        assert time.monotonic() - began >= 0.9, "the wait was not kept"
        slow.join()
        until("it is free", lambda: bench.pool("narrow")["sessions"] == 0)


@case
def whoever_breaks_off_ends_the_turn(bench):
    for model in MODELS:
        with bench.client().chat.completions.create(
            model=model, messages=user("!deltas 200\n!pace 100ms\nso many words that it takes twenty seconds"), stream=True
        ) as stream:
            next(iter(stream))
        idle(bench, model)


def idle(bench, model):
    """Its sessions are all at rest, long before the turn would have ended by itself."""
    began = time.monotonic()
    until("the turn is over", lambda: bench.pool(model)["busy"] == 0)
    assert time.monotonic() - began < 12, "it went on"
    assert bench.pool(model)["survivors"] == 0, bench.pool(model)
    assert said(bench.client(), model, "and on") == "echo: and on"


@case
def more_conversations_than_seats(bench):
    """The one that was idle for longest makes room at once, though one more process stands by."""
    for model in MODELS:
        for number in range(12):
            began, key = time.monotonic(), {"X-Session-Id": f"seat-{number}"}
            assert said(bench.client(), model, f"I am {number}", extra_headers=key) == f"echo: I am {number}"
            assert time.monotonic() - began < 10, "it waited for a seat that nobody needed"
        # Whoever comes back after its process has gone is known.
        assert "I am 0" in said(bench.client(), model, "history", extra_headers={"X-Session-Id": "seat-0"})


@case
def agents_that_die_at_once_are_given_time(_):
    """No storm of starts: further and further apart, until the circuit opens; health says so, and clients are told when."""
    bench = Bench({
        "bad": {"command": ["sh", "-c", "exit 2"], "protocol": "jsonl", "mem_limit": "16m", "warm": 1, "isolation": "none"}
    })
    try:
        until("the circuit opens", lambda: bench.pool("bad")["circuit"] == "open")
        assert bench.pool("bad")["closed"] + bench.pool("bad")["recycled"] < 10, bench.pool("bad")
        code, health = bench.get("/health")
        assert code == 503 and json.loads(health)["recovery_attempts"] >= 5, health
        why = refused(openai.InternalServerError, lambda: said(bench.client(), "bad", "hi"))
        assert why.status_code == 503 and why.code == "circuit_open", why
        assert 1 <= int(why.response.headers["retry-after"]) <= 120, why.response.headers
    finally:
        assert bench.close() == (0, [])


@case
def many_at_once(bench):
    """More than there are seats: all are answered, none twice."""
    answers = {}
    def one(number):
        model = MODELS[number % 2]
        answers[number] = said(bench.client(max_retries=5), model, f"number {number}")
    threads = [threading.Thread(target=one, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: f"echo: number {number}" for number in range(24)}, answers


# -- the SDK's own tests

# What is not offered: no completion is kept under its id, and no model can be deleted.
NOT_OFFERED = {
    "tests/api_resources/chat/test_completions.py": ["_retrieve", "_update", "_list", "_delete"],
    "tests/api_resources/test_models.py": ["_delete"],
}


@case
def the_sdks_own_tests(_):
    """Those of chat completions and of models, as they are, against pools of each protocol."""
    tests = list(NOT_OFFERED)
    left_out = [f"({os.path.basename(file)} and ({' or '.join(names)}))" for file, names in NOT_OFFERED.items()]
    texts = [open(os.path.join(SOURCES, file), encoding="utf-8").read() for file in tests]
    names = sorted(set(re.findall(r'(?:\bmodel=|\.retrieve\(\s*)"([^"]+)"', "".join(texts))) - {"model", "completion_id"})
    for protocol in ("jsonl", "claude", "exec"):
        command = [AGENT, "agent", "--protocol", protocol]
        bench = Bench({
            "sdk": {"command": command, "protocol": protocol, "models": names, "mem_limit": "48m", "isolation": "none"}
        })
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider",
                 "-k", f"not ({' or '.join(left_out)})", *tests],
                cwd=SOURCES, env={**bench.env, "TEST_API_BASE_URL": bench.base, "PYTHONDONTWRITEBYTECODE": "1"},
                timeout=DEADLINE, capture_output=True, text=True,
            )  # fmt: skip
        finally:
            assert bench.close() == (0, [])
        last = done.stdout.rstrip().rpartition("\n")[2]
        counts = {what: int(number) for number, what in re.findall(r"(\d+) (\w+)", last.partition(" in ")[0])}
        assert done.returncode == 0 and counts.keys() == {"passed", "deselected"}, done.stdout + done.stderr
        print(f"  {protocol}: the SDK's own tests: {counts['passed']} passed, {counts['deselected']} of what is not offered")
        assert counts["passed"] >= 40, counts


# -- the SDK of Node

@case
def node_completes_and_streams(bench):
    for said in bench.node("talk"):
        assert said == {"whole": "echo: hi there", "stream": "echo: in some pieces", "usage": 4, "pid": True}, said


@case
def node_has_its_errors(bench):
    assert bench.node("errors") == ["NotFoundError 404", "BadRequestError 400", "InternalServerError 502", "APIError"]


@case
def node_breaks_off(bench):
    for model, chunks in bench.node("abort").items():
        assert chunks >= 2, chunks
        idle(bench, model)


# -- llm

@case
def llm_asks_and_goes_on(bench):
    folder = bench.env["LLM_USER_PATH"]
    os.makedirs(folder)
    with open(os.path.join(folder, "extra-openai-models.yaml"), "w", encoding="utf-8") as file:
        for model in MODELS:
            file.write(f"- {{model_id: our-{model}, model_name: {model}, api_base: {bench.base!r}, api_key_name: none}}\n")
    def llm(*words):
        done = subprocess.run(
            [os.path.join(VENV, "bin", "llm"), *words], env=bench.env, timeout=DEADLINE, capture_output=True, text=True,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done
        return done.stdout.strip()
    for model in MODELS:
        key = ["--key", "none", "-m", f"our-{model}"]
        assert llm("prompt", *key, "hi there") == "echo: hi there"
        assert "and again" in llm("prompt", *key, "--continue", "and again")
        assert llm("prompt", *key, "--no-stream", "hi") == "echo: hi"


# -- an agents' SDK, through the wrapper

def held(bench):
    """The wrapper that the SDK is pointed at."""
    path = os.path.join(bench.dir, "agent-held")
    if not os.path.exists(path):
        done = bench.plimsoll("shim", "-m", "100m", "-o", path, "--", AGENT, "agent", "--protocol", "claude")
        assert done.returncode == 0, done
    return path


def admitted(bench):
    return json.loads(bench.plimsoll("status", "--json").stdout)["budget"]["admitted_bytes"]


def sdk(bench, *words):
    script = [sys.executable, os.path.join(HERE, "agent_sdk.py"), held(bench), *words]
    return subprocess.Popen(script, env=bench.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@case
def an_sdk_program_runs_through_the_wrapper(bench):
    program = sdk(bench)
    out, err = program.communicate(timeout=DEADLINE)
    assert program.returncode == 0, err
    lines = out.splitlines()
    assert lines[0] == "query: echo: alone", out
    assert lines[1] == "client: echo: one" and "one" in lines[2], out
    assert lines[3].startswith("interrupted: "), out
    until("their room is given back", lambda: admitted(bench) < 100 << 20)


@case
def an_agent_ends_with_the_program_that_started_it(bench):
    program = sdk(bench, "hold")
    heard = [program.stdout.readline() for _ in range(4)]
    assert heard[3].startswith("interrupted: "), heard
    # The pools' sessions are small and idle: so much is an agent's.
    assert admitted(bench) >= 100 << 20, "it has not joined the budget"
    program.kill()
    program.wait(timeout=DEADLINE)
    until("its agent is gone, and its room given back", lambda: admitted(bench) < 100 << 20)


@case
def what_is_not_as_it_is_published_is_found(_):
    """The case behind this one looks at everything, and has to be able to fail."""
    right = {
        "id": "a", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x", "refusal": None}, "logprobs": None,
                     "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }  # fmt: skip
    error = {"message": "x", "type": "y", "param": None, "code": None}
    for status, body, is_right in (
        (200, right, True),
        (200, {**right, "created": "1"}, False),
        (200, {**right, "model": None}, False),
        (200, {**right, "more": 1}, False),
        (200, {**right, "choices": []}, False),
        (200, {**right, "usage": {**right["usage"], "total_tokens": 3}}, False),
        (404, {"error": error}, True),
        (404, {"error": {**error, "message": None}}, False),
        (404, {"error": {"message": "x", "type": "y"}}, False),
        (404, right, False),
    ):
        try:
            published.look(status, "application/json", json.dumps(body).encode(), True)
            is_taken = True
        except (AssertionError, ValueError):
            is_taken = False
        assert is_taken == is_right, (status, body)


@case
def all_was_said_as_it_is_published(_):
    """Every response and every piece of a stream that a client of the cases before was told, errors too."""
    seen = collections.Counter()
    for line in LINES:
        seen.update(line.look())
    print("  " + ", ".join(f"{count} {what}" for what, count in sorted(seen.items())))
    assert sys.argv[1:] or all(seen[what] for what in ("completions", "streams", "chunks", "errors", "lists", "models")), seen


def main():
    chosen = [function for function in CASES if not sys.argv[1:] or function.__name__ in sys.argv[1:]]
    passed = failed = 0
    bench = Bench()
    caught = (AssertionError, OSError, KeyError, ValueError, openai.OpenAIError, ValidationError, subprocess.SubprocessError)
    try:
        for function in chosen:
            try:
                function(bench)
                passed += 1
                print(f"PASS {function.__name__}", flush=True)
            except caught as why:
                failed += 1
                print(f"FAIL {function.__name__}: {type(why).__name__}: {why}", flush=True)
    finally:
        code, left = bench.close()
    if (code, left) == (0, []):
        passed += 1
        print("PASS nothing_is_left")
    else:
        failed += 1
        print(f"FAIL nothing_is_left: down ended with {code}, and there are {left}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
