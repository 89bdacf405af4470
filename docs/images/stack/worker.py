"""A service that holds memory, grows, burns, has children or falls over: what the pictures show."""

import argparse
import subprocess
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("--hold", type=float, default=0, help="MiB from the beginning")
parser.add_argument("--grow", type=float, default=0, help="MiB a second beyond that")
parser.add_argument("--wave", type=float, default=0, help="MiB that come and go within 20 s")
parser.add_argument("--burn", action="store_true", help="use the processor")
parser.add_argument("--fail-after", type=float, default=0, help="seconds until it exits with 3")
parser.add_argument("--children", nargs="*", default=[], help="MiB of each")
args = parser.parse_args()

MIB = 1 << 20
PAGE = b"x" * MIB
begin = time.monotonic()
held = [bytearray(PAGE) for _ in range(int(args.hold))]
children = [subprocess.Popen([sys.executable, __file__, "--hold", mib]) for mib in args.children]
base = len(held)
while True:
    now = time.monotonic() - begin
    phase = now % 20 / 10
    wanted = base + int(args.grow * now + args.wave * (phase if phase < 1 else 2 - phase))
    while len(held) < wanted:
        held.append(bytearray(PAGE))
    del held[wanted:]
    if args.fail_after and now > args.fail_after:
        sys.exit(3)
    pause = time.monotonic() + 0.1
    while args.burn and time.monotonic() < pause:
        pass
    time.sleep(max(0.0, pause - time.monotonic()))
