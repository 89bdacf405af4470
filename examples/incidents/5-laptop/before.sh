#!/bin/sh
# The nine services as the team's start command had them: no limit, no restart policy, nobody who looks after them.
# Says which process each one is, and how it ended.
cd "$(dirname "$0")" || exit 1

start() {
    name=$1
    shift
    {
        "$@" >/dev/null 2>&1 &
        echo "$name is $!"
        wait $!
        echo "$name ended with $?"
    } &
}

start redis redis-server --port "$REDIS_PORT" --bind 127.0.0.1 --save "" --loglevel warning
start agent python3 service.py agent --port "$AGENT_PORT"
start knowledge python3 service.py knowledge --port "$KNOWLEDGE_PORT"
start vector python3 service.py vector --port "$VECTOR_PORT"
start auth python3 service.py auth --port "$AUTH_PORT"
start session python3 service.py session --port "$SESSION_PORT"
start case python3 service.py case --port "$CASE_PORT"
start evidence python3 service.py evidence --port "$EVIDENCE_PORT"
start worker python3 service.py worker --port "$WORKER_PORT"
wait
