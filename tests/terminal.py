"""A terminal for tests: runs a command on a real pty and says what stands on its screen in the end."""

import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

CONTROL = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")
QWENFT = [sys.executable, "-m", "qwenft"]


def environment(**changes: str) -> dict[str, str]:
    """This process's, without what would change how a terminal is written to."""
    dropped = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "GITHUB_ACTIONS")
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    root = str(Path(__file__).parents[1])
    return {**kept, "TERM": "xterm-256color", "PYTHONPATH": root, "PYTHONUTF8": "1", **changes}


@dataclass
class OnTerminal:
    """A process whose stdin, stdout and stderr are one terminal."""

    process: subprocess.Popen[bytes]
    handle: int
    written: bytearray = field(default_factory=bytearray)

    @property
    def text(self) -> str:
        return self.written.decode(errors="replace")

    def read(self, until: Callable[[str], bool] = lambda text: False, limit_s: float = 120) -> str:
        """Collect what is written until it satisfies `until` or the process ends."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end and not until(self.text):
            if select.select([self.handle], [], [], 0.1)[0]:
                try:
                    more = os.read(self.handle, 65536)
                except OSError:  # Linux: the other side is closed
                    break
                if not more:
                    break
                self.written += more
        return self.text

    def end(self, limit_s: float = 60) -> int:
        """Wait for the end; the exit status."""
        self.read(limit_s=limit_s)
        status = self.process.wait(timeout=limit_s)
        os.close(self.handle)
        return status


def on_terminal(command: list[str], folder: Path, *, columns: int = 80, **changes: str) -> OnTerminal:
    """Start a command as the shell of a terminal would: Ctrl-C is the byte 3, written to its handle."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        command, cwd=folder, env=environment(**changes), stdin=theirs, stdout=theirs, stderr=theirs,
        preexec_fn=take_terminal,  # noqa: PLW1509 - nothing here but two calls of the system
    )  # fmt: skip
    os.close(theirs)
    return OnTerminal(process, ours)


def screen(written: str, columns: int = 80) -> list[str]:
    """The lines that stand there in the end, by what our bars use: CR, LF, cursor up, erase line, wrapping."""
    lines, row, column = [""], 0, 0
    at = 0
    while at < len(written):
        control = CONTROL.match(written, at)
        if control:
            row, lines = _obey(control, row, lines)
            at = control.end()
            continue
        char = written[at]
        at += 1
        if char == "\r":
            column = 0
        elif char == "\n" or column == columns:
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        if char not in "\r\n":
            lines[row] = lines[row].ljust(column)[:column] + char + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


def _obey(control: re.Match[str], row: int, lines: list[str]) -> tuple[int, list[str]]:
    arguments, name = control.groups()
    if name == "A":
        return row - int(arguments or 1), lines
    if name == "K":
        assert arguments == "2", "only whole lines are erased"
        lines[row] = ""
    else:
        assert name in "mhl", f"unknown control {control.group()!r}"
    return row, lines


def colours(written: str) -> set[str]:
    """Every colour that was set."""
    codes = [code for match in CONTROL.finditer(written) if match[2] == "m" for code in match[1].split(";")]
    return {code for code in codes if re.fullmatch(r"3[0-8]|4[0-8]|9\d|10\d", code)}


def controls(written: bytes) -> list[int]:
    """Bytes that have no place in a log: all under 0x20 but newline and tab, and DEL."""
    return [byte for byte in written if (byte < 0x20 and byte not in b"\n\t") or byte == 0x7F]


def plain(command: list[str], folder: Path, *, together: bool = False, **changes: str) -> tuple[int, bytes, bytes]:
    """Run off a terminal: exit status, stdout, stderr (all in stdout if together, as `2>&1 | tee log` has it)."""
    done = subprocess.run(
        command, check=False, cwd=folder, env=environment(**changes), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT if together else subprocess.PIPE, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr or b""
