#!/usr/bin/env python3
"""The agent of incident 3, an eighth of its size: it speaks JSON Lines, leaks with each turn, and sometimes dies.

It holds 112 MiB while it starts, 40 MiB then, and 6 MiB more after each turn. A message whose number leaves 50 when it
is divided by 97 kills it before its answer, one that leaves 30 when it is divided by 61 after it.
"""

import json
import os
import subprocess
import sys

MIB = 1 << 20


def held(mib):
    return bytearray(b"\1") * (mib * MIB)  # each page of it is written


def main():
    start = held(112)  # what it reads and compiles at first
    del start
    memory = [held(40)]
    # Its tool server, which leaves the session and so no kill of the agent alone finds it.
    subprocess.Popen(["sleep", "86400"], start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    for line in sys.stdin:
        said = json.loads(line)
        if said["type"] != "turn":
            continue
        text = said["messages"][-1]["content"]
        number = int(text.split()[-1])
        memory.append(held(6))
        if number % 97 == 50:
            os._exit(9)
        answer = {"type": "final", "text": f"{text} is answered", "usage": {"prompt_tokens": 2, "completion_tokens": 4}}
        print(json.dumps(answer), flush=True)
        if number % 61 == 30:
            os._exit(9)


if __name__ == "__main__":
    main()
