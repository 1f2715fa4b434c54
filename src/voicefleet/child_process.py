"""Child processes that do not outlive the process that starts them."""

import os
import sys
from collections.abc import Sequence
from typing import Final

# Runs in place of the command, asks the kernel to kill it when its parent dies (PR_SET_PDEATHSIG
# is 1), and becomes it. A preexec_fn would do the same in a fork of a process with threads, where
# Python code may deadlock.
_TIE: Final = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)  # the parent died before the tie was made
os.execv(sys.argv[2], sys.argv[2:])
"""


def tied(command: Sequence[str]) -> list[str]:
    """The command to run instead, so that the kernel kills the child with the calling thread.

    The first word must be an absolute path. Elsewhere than on Linux it is the command as it is.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _TIE, str(os.getpid()), *command]
