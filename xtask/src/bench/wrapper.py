"""A chat wrapper as people write it: FastAPI and uvicorn, one agent process a conversation, kept for the next turn.

usage: wrapper.py PORT COMMAND [ARG...]
"""

import asyncio
import json
import sys
import time
import uuid

import uvicorn
from fastapi import FastAPI, Request

app = FastAPI()
agents = {}


class Agent:
    def __init__(self, process):
        self.process, self.lock = process, asyncio.Lock()

    async def ask(self, messages):
        async with self.lock:
            turn = {"type": "turn", "id": uuid.uuid4().hex, "session": "s", "messages": messages}
            self.process.stdin.write(json.dumps(turn).encode() + b"\n")
            await self.process.stdin.drain()
            parts = []
            async for line in self.process.stdout:
                said = json.loads(line)
                if said["type"] == "delta":
                    parts.append(said["text"])
                elif said["type"] == "final":
                    return said.get("text", "".join(parts)), said.get("usage", {})
        raise RuntimeError("the agent has ended")


async def agent(key):
    if key not in agents:
        pipe = asyncio.subprocess.PIPE
        agents[key] = asyncio.ensure_future(asyncio.create_subprocess_exec(*sys.argv[2:], stdin=pipe, stdout=pipe))
        agents[key] = Agent(await agents[key])
    while not isinstance(agents[key], Agent):
        await asyncio.sleep(0.01)
    return agents[key]


@app.post("/v1/chat/completions")
async def complete(request: Request):
    body = await request.json()
    one = await agent(request.headers.get("x-session-id", "default"))
    text, usage = await one.ask(body["messages"])
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [choice],
        "usage": usage,
    }


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
