#!/usr/bin/env python3
"""The agent of incident 2, a quarter of its size: it speaks JSON Lines and holds 40 MiB, and 100 MiB within a turn.

Of these 15 MiB are its tool server's, which has a session of its own. A presentation takes a second, all else a moment.
An argument says how many quarters it has.
"""

import json
import subprocess
import sys
import time

MIB = (int(sys.argv[1]) if len(sys.argv) > 1 else 1) << 20


def held(mib):
    return bytearray(b"\1") * (mib * MIB)  # each page of it is written


def turn(seconds):
    """The work: more of the agent, a tool server, and a file in memory."""
    tool = f"import time; more = bytearray(b'\\1') * {8 * MIB}; time.sleep(float(__import__('sys').argv[1]))"
    server = subprocess.Popen([sys.executable, "-c", tool, str(seconds)], start_new_session=True)
    agent, file = held(30), held(15)
    code = server.wait()
    if code:
        raise ChildProcessError(f"the tool server ended with {code}")
    return len(agent) + len(file)


def main():
    memory, heard = held(30), 0  # and the interpreter
    for line in sys.stdin:
        said = json.loads(line)
        if said["type"] != "turn":
            continue
        heard += sum(message["role"] == "user" for message in said["messages"])
        text = said["messages"][-1]["content"]
        try:
            turn(1.0 if "presentation" in text else 0.05)
            answer = {"type": "final", "text": f"<p>{text}</p><!-- {heard} -->"}
        except (OSError, MemoryError) as why:
            answer = {"type": "error", "message": str(why)}
        print(json.dumps(answer), flush=True)
    return len(memory)


if __name__ == "__main__":
    main()
