"""What somebody who watches a training in a terminal sees."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

SCRIPT = """
import time
from steersman.progress import bar
with bar("train [/tim]") as progress:
    for done in range(100, 4001, 100):
        progress(done, 4000, {"loss": 12.3456, "q": 23.45678, "q_largest": 45.678, "steps/s": 2345.6})
        time.sleep(0.02)
"""


@pytest.mark.parametrize("columns", [80, 140])
def test_a_bar_shows_loss_q_speed_and_the_time_left_in_80_columns_too(columns):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=theirs, env=env | {"TERM": "xterm"})
    os.close(theirs)
    drawn = b""
    while part := _read(ours):
        drawn += part
    os.close(ours)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn.decode())
    lines = [line for line in re.split(r"[\r\n]+", text) if "loss" in line]
    told = r"\d+00/4000 +(00:\d\d|--:--) loss 12\.35 q 23\.46 q_largest 45\.68 steps/s 2,346"
    assert all(re.search(told, line) and len(line.rstrip()) <= columns for line in lines), lines
    assert any("/4000 00:0" in line for line in lines), lines


def _read(file: int) -> bytes:
    try:
        return os.read(file, 4096)
    except OSError:  # the other end is closed
        return b""
