"""What the published API lets a server say, and a line between clients and a gateway on which all that is said is looked at.

The shapes are those of the SDK's own types, which are made from the published document, read in their strict mode and with no
key that they do not know; besides, each key that the document requires has to be there, even where it may be null: the types
are not that strict.
"""

import collections
import contextlib
import json
import socket
import threading

import h11
from openai.types import Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.shared.error_object import ErrorObject
from pydantic import BaseModel

TEXT, NUMBER, LIST, NOTHING = str, int, list, type(None)
REQUIRED = {
    "completion": {"id": TEXT, "object": "chat.completion", "created": NUMBER, "model": TEXT, "choices": LIST},
    "choice": {"index": NUMBER, "message": dict, "logprobs": (dict, NOTHING), "finish_reason": ("stop", "length")},
    "message": {"role": "assistant", "content": (TEXT, NOTHING), "refusal": (TEXT, NOTHING)},
    "usage": {"prompt_tokens": NUMBER, "completion_tokens": NUMBER, "total_tokens": NUMBER},
    "chunk": {"id": TEXT, "object": "chat.completion.chunk", "created": NUMBER, "model": TEXT, "choices": LIST},
    "piece": {"index": NUMBER, "delta": dict, "finish_reason": ("stop", "length", NOTHING)},
    "model": {"id": TEXT, "object": "model", "created": NUMBER, "owned_by": TEXT},
    "error": {"message": TEXT, "type": TEXT, "param": (TEXT, NOTHING), "code": (TEXT, NOTHING)},
}
DATA = "data: "
DONE = "[DONE]"


def required(kind, value):
    for key, wanted in REQUIRED[kind].items():
        assert key in value, f"a {kind} without {key}: {value}"
        found = value[key]
        choices = wanted if isinstance(wanted, tuple) else (wanted,)
        fits = [type(found) is one if isinstance(one, type) else found == one for one in choices]
        assert any(fits), f"the {key} of a {kind} is {found!r}, and has to be one of {choices}"
    return value


def known(value):
    """Neither it nor what is in it has a key beside those of its type."""
    if isinstance(value, list):
        for one in value:
            known(one)
    elif isinstance(value, BaseModel):
        assert not value.model_extra, f"{type(value).__name__} has no {value.model_extra}"
        for _, one in value:
            known(one)
    return value


def typed(kind, raw):
    return known(kind.model_validate_json(json.dumps(raw), strict=True))


def completion(raw):
    (choice,) = required("completion", raw)["choices"]
    required("message", required("choice", choice)["message"])
    cost(raw["usage"])
    return typed(ChatCompletion, raw)


def cost(raw):
    usage = required("usage", raw)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"], usage
    return usage


def chunk(raw):
    for piece in required("chunk", raw)["choices"]:
        required("piece", piece)
    if raw.get("usage") is not None:
        assert raw["choices"] == [], raw
        cost(raw["usage"])
    return typed(ChatCompletionChunk, raw)


def model(raw):
    return typed(Model, required("model", raw))


def models(raw):
    assert raw["object"] == "list" and raw.keys() == {"object", "data"}, raw
    return [model(one) for one in raw["data"]]


def error(raw):
    assert raw.keys() == {"error"}, raw
    return typed(ErrorObject, required("error", raw["error"]))


def stream(events, is_whole=True):
    """The chunks of a stream, and the error at its end, if there is one."""
    assert all(event.startswith(DATA) for event in events), events
    said = [event.removeprefix(DATA) for event in events]
    failed, is_done = None, DONE in said
    if is_done:
        assert said.index(DONE) == len(said) - 1, "something is said behind the end"
        said.pop()
    raw = [json.loads(event) for event in said]
    if raw and "error" in raw[-1]:
        failed = error(raw.pop())
    assert not is_whole or is_done != (failed is not None), f"a stream ends with its end or an error: {events[-1:]}"
    chunks = [chunk(one) for one in raw]
    assert len({(one.id, one.created, one.model) for one in chunks}) <= 1, "one answer has one head"
    if any("usage" in one for one in raw):
        assert all("usage" in one for one in raw), raw
        costs = [one["usage"] for one in raw]
        assert costs[:-1] == [None] * (len(raw) - 1) and (not is_done or costs[-1]), costs
    pieces = [piece for one in raw for piece in one["choices"]]
    ends = [piece["finish_reason"] for piece in pieces]
    assert ends == [None] * (len(pieces) - 1) + ["stop"] if is_done else not any(ends[:-1]), ends
    assert not pieces or pieces[0]["delta"]["role"] == "assistant", pieces[0]
    return chunks, failed


class Line:
    """A line to the gateway at `port`: each byte is handed on as it comes, both ways, and each end of a connection too."""

    def __init__(self, port):
        self.to, self.heard, self.lock = port, [], threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self.connect, args=(client,), daemon=True).start()

    def connect(self, client):
        try:
            gateway = socket.create_connection(("127.0.0.1", self.to))
        except OSError:
            return client.close()
        heard = bytearray()
        with self.lock:
            self.heard.append(heard)
        there = threading.Thread(target=hand_on, args=(client, gateway), daemon=True)
        there.start()
        hand_on(gateway, client, heard)
        there.join()
        client.close()
        gateway.close()

    def close(self):
        # Only a shutdown wakes whoever waits for the next connection.
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def look(self):
        """Looks at all that was heard; answers how much there was of what."""
        seen = collections.Counter()
        with self.lock:
            heard = [bytes(one) for one in self.heard if one]
        try:
            for one in heard:
                for status, kind, body, is_whole in responses(one):
                    seen.update(look(status, kind, body, is_whole))
        except (h11.ProtocolError, KeyError, TypeError) as why:
            raise AssertionError(f"what was said is of another shape: {why!r}") from why
        return seen


def hand_on(source, target, heard=None):
    try:
        while some := source.recv(1 << 16):
            if heard is not None:
                heard += some
            target.sendall(some)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        # One side is gone altogether: the other is told so, and whoever waits for it wakes.
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def responses(heard):
    """The responses on one connection: status, type, body, and whether it was heard to its end."""
    connection = h11.Connection(h11.CLIENT)
    connection.receive_data(heard)
    while connection.our_state is h11.IDLE:
        connection.send(h11.Request(method="POST", target="/", headers=[("host", "line")]))
        connection.send(h11.EndOfMessage())
        head, body = None, b""
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                break
        if head is None:
            return
        is_whole = isinstance(event, h11.EndOfMessage)
        yield head.status_code, dict(head.headers).get(b"content-type", b"").decode(), body, is_whole
        if not is_whole or connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
            return
        connection.start_next_cycle()


def look(status, kind, body, is_whole):
    if kind.startswith("text/event-stream"):
        assert status == 200, (status, body)
        # What broke off within an event is half a line, of which nobody knows the rest.
        events = body.decode(errors="strict" if is_whole else "replace").split("\n\n")
        rest = events.pop()
        assert not (is_whole and rest), f"something is left of a stream: {rest!r}"
        chunks, failed = stream(events, is_whole)
        return {"streams": 1, "chunks": len(chunks), "errors": int(failed is not None), "broken off": int(not is_whole)}
    assert kind.startswith("application/json"), (status, kind, body)
    if not is_whole:
        return {"broken off": 1}
    raw = json.loads(body)
    if status >= 400:
        error(raw)
        return {"errors": 1}
    shapes = {"chat.completion": ("completions", completion), "list": ("lists", models), "model": ("models", model)}
    name, shape = shapes[raw["object"]]
    shape(raw)
    return {name: 1}
