#!/usr/bin/env python3
"""Makes the pictures of `plimsoll top` and `plimsoll status` anew, from a real run.

    python3 docs/images/make.py target/…/plimsoll

Needs tmux, python3 and what `plimsoll up` needs. What a terminal shows is drawn as SVG: blocks and rules as shapes, so
that they meet in every font, and the rest as text.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from html import escape
from pathlib import Path

HERE = Path(__file__).resolve().parent
WIDTH, HEIGHT = 9, 19
SIZE = 15
MARGIN = 16
BACK, FORE = "#10151d", "#d7dee8"
NAMED = ["#3b4252", "#ff6b6b", "#5fd38d", "#f2c94c", "#6ea8fe", "#c792ea", "#56c8d8", "#d7dee8"]
INDEXED = {208: "#ff9f43", 237: "#263140", 239: "#3a4555", 244: "#8792a2"}


def indexed(number):
    if number in INDEXED:
        return INDEXED[number]
    if number < 16:
        return NAMED[number % 8]
    if number >= 232:
        return "#" + f"{8 + (number - 232) * 10:02x}" * 3
    cube = number - 16
    return "#" + "".join(f"{(0, 95, 135, 175, 215, 255)[part]:02x}" for part in (cube // 36, cube // 6 % 6, cube % 6))


def cells(text):
    """Lines of (character, fore, back, bold, faint, underlined) out of what a terminal was told."""
    fore = back = None
    bold = faint = under = turned = False
    for line in text.rstrip("\n").split("\n"):
        row = []
        for codes, char in re.findall(r"\x1b\[([\d;]*)m|([^\x1b])", line):
            if char:
                colours = (back or BACK, fore or FORE) if turned else (fore, back)
                row.append((char, *colours, bold, faint, under))
                continue
            codes = [int(code or 0) for code in codes.split(";")]
            while codes:
                code = codes.pop(0)
                if code == 0:
                    fore = back = None
                    bold = faint = under = turned = False
                elif code in (38, 48) and codes and codes[0] == 5:
                    colour, codes = indexed(codes[1]), codes[2:]
                    fore, back = (colour, back) if code == 38 else (fore, colour)
                elif code in (1, 2, 4, 7):
                    bold, faint, under, turned = bold or code == 1, faint or code == 2, under or code == 4, turned or code == 7
                elif code == 22:
                    bold = faint = False
                elif code == 24:
                    under = False
                elif code == 27:
                    turned = False
                elif code == 39:
                    fore = None
                elif code == 49:
                    back = None
                elif 30 <= code < 38:
                    fore = NAMED[code - 30]
                elif 40 <= code < 48:
                    back = NAMED[code - 40]
                elif 90 <= code < 98:
                    fore = NAMED[code - 90]
        yield row


RULES = {
    "─": "h", "│": "v", "├": "vr", "└": "ur", "╭": "dr", "╮": "dl", "╰": "ur", "╯": "ul",
}


def shape(char, x, y, colour):
    """A block or rule as a shape; None is text."""
    rect = lambda left, top, width, height: (
        f'<rect x="{x + left:g}" y="{y + top:g}" width="{width:g}" height="{height:g}" fill="{colour}"/>'
    )
    code = ord(char)
    if 0x2581 <= code <= 0x2588:
        height = HEIGHT * (code - 0x2580) / 8
        return rect(0, HEIGHT - height, WIDTH, height)
    if char in "━╸":
        return rect(0, 6, WIDTH if char == "━" else WIDTH / 2, 8)
    if char == "╍":
        return rect(0, 6, 3.5, 8) + rect(4.5, 6, 3.5, 8)
    if char in RULES:
        middle, centre, way = HEIGHT / 2, WIDTH / 2, RULES[char]
        ends = {"h": (0, middle, WIDTH, middle), "v": (centre, 0, centre, HEIGHT), "u": (centre, 0, centre, middle),
                "d": (centre, middle, centre, HEIGHT), "l": (0, middle, centre, middle), "r": (centre, middle, WIDTH, middle)}
        path = "".join(f"M{x + a:.2f} {y + b:.2f}L{x + c:.2f} {y + d:.2f}" for a, b, c, d in (ends[part] for part in way))
        return f'<path d="{path}" stroke="{colour}" stroke-width="1.2"/>'
    return None


def svg(text, title):
    rows = list(cells(text))
    columns = max(len(row) for row in rows)
    width, height = columns * WIDTH + 2 * MARGIN, len(rows) * HEIGHT + 2 * MARGIN
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="100%" height="100%" rx="8" fill="{BACK}"/>',
        f'<g font-family="ui-monospace,\'DejaVu Sans Mono\',Menlo,Consolas,monospace" font-size="{SIZE}" shape-rendering="crispEdges">',
    ]
    for number, row in enumerate(rows):
        y = MARGIN + number * HEIGHT
        at = 0
        while at < len(row):
            style = row[at][1:]
            fore, back, bold, faint, under = style
            end = at
            while end < len(row) and row[end][1:] == style:
                end += 1
            x = MARGIN + at * WIDTH
            if back:
                out.append(f'<rect x="{x:.2f}" y="{y:.2f}" width="{(end - at) * WIDTH:.2f}" height="{HEIGHT}" fill="{back}"/>')
            run = ""
            for index in range(at, end + 1):
                char = row[index][0] if index < end else None
                drawn = shape(char, MARGIN + index * WIDTH, y, fore or FORE) if char else ""
                if drawn is None:
                    run += char
                    continue
                more = (' font-weight="bold"' if bold else "") + (' opacity="0.6"' if faint else "")
                more += ' text-decoration="underline"' if under else ""
                # Blanks in a row would be one: each piece stands for itself.
                for words in re.finditer(r"\S+(?: \S+)*", run):
                    left = MARGIN + (index - len(run) + words.start()) * WIDTH
                    out.append(
                        f'<text x="{left:g}" y="{y + 14:g}" fill="{fore or FORE}" textLength="{len(words[0]) * WIDTH:g}"{more}>'
                        f"{escape(words[0])}</text>"
                    )
                run = ""
                if drawn:
                    out.append(drawn)
            at = end
    return "\n".join(out) + "\n</g></svg>\n"


def main():
    plimsoll = str(Path(sys.argv[1]).resolve())
    work = Path(tempfile.mkdtemp(prefix="plimsoll-pictures-"))
    environment = dict(os.environ, PLIMSOLL_STATE_DIR=f"{work}/state", PLIMSOLL_RUNTIME_DIR=f"{work}/run", TERM="xterm-256color")
    environment.pop("NO_COLOR", None)
    tmux = lambda *words: subprocess.run(["tmux", "-S", f"{work}/tmux", *words], env=environment, check=True, text=True, capture_output=True).stdout
    shot = lambda window: tmux("capture-pane", "-p", "-e", "-N", "-t", window)
    stack = subprocess.Popen([plimsoll, "up", "-f", str(HERE / "stack")], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(20)
        tmux("-f", "/dev/null", "new-session", "-d", "-s", "top", "-x", "110", "-y", "34", f"{plimsoll} top")
        time.sleep(1)
        tmux("send-keys", "-t", "top", "j", "j")
        time.sleep(float(os.environ.get("SECONDS_OF_TOP", "58")))
        (HERE / "top.svg").write_text(svg(shot("top"), "plimsoll top: nine replicas, one of which grows to its line"))
        tmux("new-window", "-d", "-t", "top", "-n", "status", f"stty cols 80; {plimsoll} status; sleep 60")
        time.sleep(1)
        text = "\n".join(line.rstrip() for line in shot("top:status").rstrip().splitlines())
        (HERE / "status.svg").write_text(svg(text, "plimsoll status: the same stack as a table of 80 columns"))
    finally:
        subprocess.run([plimsoll, "down"], env=environment)
        stack.wait(30)
        subprocess.run(["tmux", "-S", f"{work}/tmux", "kill-server"], capture_output=True)
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
