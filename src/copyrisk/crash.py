"""Named points at which fault tests have a process killed: what it had done must be all that it leaves behind."""

import os
import signal

_AT, _, _COUNT = os.environ.get("COPYRISK_CRASH_AT", "").partition(":")
_left = int(_COUNT or 1)


def reach(name: str) -> None:
    """Die here by SIGKILL if the environment says so: `COPYRISK_CRASH_AT=name`, or `name:N` for the N-th time."""
    global _left  # noqa: PLW0603
    if name == _AT:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
