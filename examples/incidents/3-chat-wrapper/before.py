#!/usr/bin/env python3
"""The wrapper of incident 3: the chat API before an agent that all requests share, with a new agent after 10 turns."""

import argparse
import asyncio
import itertools
import json
import os
import time

import uvicorn
from fastapi import FastAPI, HTTPException

MOST_TURNS = 10
HERE = os.path.dirname(os.path.abspath(__file__))
app = FastAPI()
numbers = itertools.count(1)


class Agent:
    """One process, and the task that reads what it says."""

    async def start(self):
        self.turns, self.answers = 0, asyncio.Queue()
        self.process = await asyncio.create_subprocess_exec(
            f"{HERE}/agent.py", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        self.reader = asyncio.create_task(self.read())
        return self

    async def read(self):
        async for line in self.process.stdout:
            await self.answers.put(json.loads(line))
        await self.answers.put(None)

    async def ask(self, messages):
        self.turns += 1
        turn = {"type": "turn", "id": str(self.turns), "session": "default", "messages": messages}
        self.process.stdin.write(json.dumps(turn).encode() + b"\n")
        await self.process.stdin.drain()
        answer = await self.answers.get()
        if answer is None:
            raise ConnectionError("the agent has ended")
        return answer


class Wrapper:
    def __init__(self):
        self.agent, self.lock = None, asyncio.Lock()
        self.requests = self.errors = self.restarts = 0

    async def restart(self):
        # It can be closed only by the task that has opened it, and this is another one. So the reference is dropped.
        self.agent = None
        self.restarts += 1

    async def ask(self, messages):
        async with self.lock:
            self.requests += 1
            if self.agent and self.agent.turns >= MOST_TURNS:
                await self.restart()
            try:
                self.agent = self.agent or await Agent().start()
                return await self.agent.ask(messages)
            except OSError:
                self.errors += 1
                self.agent = None
                raise


wrapper = Wrapper()


@app.post("/v1/chat/completions")
async def complete(body: dict):
    try:
        answer = await wrapper.ask(body["messages"])
    except OSError as why:
        raise HTTPException(500, f"the agent failed: {why}") from why
    usage = {**answer["usage"], "total_tokens": sum(answer["usage"].values())}
    message = {"role": "assistant", "content": answer["text"], "refusal": None}
    choice = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": None}
    return {
        "id": f"chatcmpl-{next(numbers)}", "object": "chat.completion", "created": int(time.time()),
        "model": body["model"], "choices": [choice], "usage": usage,
    }  # fmt: skip


@app.get("/health")
async def health():
    with open("/proc/self/statm", encoding="ascii") as file:
        rss = int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")  # of this process, and of no agent
    stats = {"total_requests": wrapper.requests, "total_errors": wrapper.errors, "restart_count": wrapper.restarts}
    return {"status": "healthy", "stats": stats, "memory": {"rss_mb": rss / (1 << 20)}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=7073)
    uvicorn.run(app, host="127.0.0.1", port=parser.parse_args().port, log_level="warning")
