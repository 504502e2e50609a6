"""Start a program that ends with its parent, however the parent ends.

    python -IS _launcher.py PARENT_PID PROGRAM [ARGUMENT ...]

Linux only (`PR_SET_PDEATHSIG`). The kernel sends the signal when the *thread* that started this process ends, so
it must be started from a thread that lives as long as the program should. Standard library only: it is run as a
file, in a bare interpreter, which takes some 15 ms.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_USAGE = 64
_PARENT_GONE = 75


def main(arguments: list[str]) -> int:
    """Tie this process to its parent, then become the program; returns only on failure."""
    if len(arguments) < 2 or not arguments[0].isdecimal():
        print("usage: _launcher.py PARENT_PID PROGRAM [ARGUMENT ...]", file=sys.stderr)
        return _USAGE
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        print(f"prctl: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        return 1
    # The parent may have died before the line above; then nobody will ever send the signal.
    if os.getppid() != int(arguments[0]):
        return _PARENT_GONE
    # A terminal's Ctrl-C goes to the whole group; the parent decides when this program ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        os.execv(arguments[1], arguments[1:])
    except OSError as failure:
        print(f"{arguments[1]}: {failure.strerror}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
