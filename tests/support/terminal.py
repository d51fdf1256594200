"""Commands on a terminal of their own."""

import contextlib
import fcntl
import os
import struct
import subprocess
import sys
import termios


def on_a_terminal(words, columns=80, **environment):
    """Return the exit code and what Python prints on a terminal of so many columns."""
    terminal, end = os.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, *words]
    kept = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | environment
    with subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=kept) as started:
        os.close(end)
        said = b""
        with contextlib.suppress(OSError):  # Linux' end of a terminal
            while piece := os.read(terminal, 4096):
                said += piece
    os.close(terminal)
    return started.returncode, said.decode().replace("\r\n", "\n")
