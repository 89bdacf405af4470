"""An agent that speaks `jsonl`, in a page: it remembers what it was told and says it again.

A line a turn comes in, any number of deltas and one final go out. End of input means finish and exit.
"""

import json
import sys


def say(**words):
    print(json.dumps(words), flush=True)


heard = []
for line in sys.stdin:
    asked = json.loads(line)
    if asked["type"] != "turn":
        continue  # memory gets short, or a turn is to be stopped: this one is always quick and small
    heard += [message["content"] for message in asked["messages"] if message["role"] == "user"]
    answer = f"You said {heard[-1]!r}." + (f" Before that: {', '.join(map(repr, heard[:-1]))}." if heard[1:] else "")
    for word in answer.split(" "):
        say(type="delta", text=word + " ")
    say(type="final", text=answer)
