#!/usr/bin/env python3
"""The chat bot of incident 2: a webhook, a session for each room and bot, and an agent for each session."""

import argparse
import asyncio
import json
import os
import time

import uvicorn
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

HERE = os.path.dirname(os.path.abspath(__file__))
TTL = float(os.environ.get("TTL", "1800"))
app = FastAPI()
sessions = {}
tasks = set()


class Session:
    """One agent, and the task that reads what it says."""

    async def start(self):
        self.answers, self.lock = asyncio.Queue(), asyncio.Lock()
        self.process = await asyncio.create_subprocess_exec(
            f"{HERE}/agent.py", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        tasks.add(asyncio.create_task(self.read()))
        return self

    async def read(self):
        async for line in self.process.stdout:
            await self.answers.put(json.loads(line))
        code = await self.process.wait()
        await self.answers.put({"type": "error", "message": f"Command failed with exit code {code}"})

    async def ask(self, text):
        async with self.lock:
            turn = {"type": "turn", "id": "1", "session": "s", "messages": [{"role": "user", "content": text}]}
            self.process.stdin.write(json.dumps(turn).encode() + b"\n")
            await self.process.stdin.drain()
            return await self.answers.get()


@app.post("/webhook/{bot}")
async def webhook(bot: str, body: dict):
    key = (body["room"]["id"], bot)
    session, since = sessions.get(key, (None, 0))
    if session is None or time.monotonic() - since > TTL:
        session = await Session().start()  # an expired entry is dropped, and so is the reference to its agent
    sessions[key] = session, time.monotonic()
    try:
        answer = await session.ask(body["content"])
    except OSError as why:
        answer = {"type": "error", "message": str(why)}
    if answer["type"] == "error":
        sessions.pop(key, None)
        return PlainTextResponse(answer["message"], status_code=500)
    return PlainTextResponse(answer["text"])


@app.get("/health")
async def health():
    return {"status": "healthy", "sessions": len(sessions)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=7072)
    uvicorn.run(app, host="127.0.0.1", port=parser.parse_args().port, log_level="warning")
