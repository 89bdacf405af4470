"""A program that starts an agent by its path, as it would without Plimsoll: one question alone, then a conversation.

usage: agent_sdk.py CLI_PATH [hold]      with `hold` the conversation is left open until somebody ends this program
"""

import asyncio
import sys

from claude_agent_sdk import AssistantMessage, ClaudeAgentOptions, ClaudeSDKClient, TextBlock, query

OPTIONS = ClaudeAgentOptions(cli_path=sys.argv[1])


def text(message):
    if isinstance(message, AssistantMessage):
        return "".join(block.text for block in message.content if isinstance(block, TextBlock))
    return ""


async def main():
    said = [text(message) async for message in query(prompt="alone", options=OPTIONS)]
    print("query:", "".join(said), flush=True)
    async with ClaudeSDKClient(options=OPTIONS) as client:
        for prompt in ("one", "history"):
            await client.query(prompt)
            said = [text(message) async for message in client.receive_response()]
            print("client:", "".join(said), flush=True)
        await client.query("!sleep 60s")
        await client.interrupt()
        async for message in client.receive_response():
            last = type(message).__name__
        print("interrupted:", last, flush=True)
        if sys.argv[2:] == ["hold"]:
            await asyncio.sleep(600)


asyncio.run(main())
