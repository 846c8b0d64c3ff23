"""What people see on a terminal, and programs in a file."""

import os
import pty
import subprocess
import sys

SHOWN = """
from app.terminal import ProgressLine, print_result
with ProgressLine("queued") as line:
    line.update(0, None)
with ProgressLine("uploading") as line:
    for done in range(3):
        line.update(done / 2 + 0.25, 10)
print_result("name \\x1b[31m.mp4")
"""
COMMAND = [sys.executable, "-c", SHOWN]


def shown_on_a_terminal() -> str:
    controller, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(COMMAND, stdin=terminal, stdout=terminal, stderr=terminal, env=environment) as process:
        os.close(terminal)
        shown = b""
        try:
            while piece := os.read(controller, 65536):
                shown += piece
        except OSError:  # the other end is closed
            pass
    os.close(controller)
    assert process.returncode == 0
    return shown.decode()


def test_progress_is_a_bar_on_a_terminal_and_plain_lines_elsewhere() -> None:
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=True)

    assert (done.stdout, done.stderr) == ("name ?[31m.mp4\n", "queued\nuploading: 0.2 of 10\n")
    on_terminal = shown_on_a_terminal()
    assert "\x1b[?25l" in on_terminal  # the cursor is hidden while the bar moves
    assert "1.2/10" in on_terminal
    assert "0/" not in on_terminal  # of what waits nothing is counted
    assert "uploading: 0.2 of 10" not in on_terminal
    assert "name ?[31m.mp4" in on_terminal
