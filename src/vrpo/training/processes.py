"""The processes of a run: they end with their launcher, and leave one another in order."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed

_LAUNCHED = {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"}  # what torchrun and `accelerate launch` say
_PR_SET_PDEATHSIG = 1  # prctl(2)


def end_with_launcher() -> None:
    """Have the system kill this process when its launcher dies: what nobody watches would write on for ever."""
    if sys.platform == "linux" and _LAUNCHED & os.environ.keys():
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def together() -> Iterator[None]:
    """A command of several processes, which part when it is done. After a failure the launcher ends them."""
    end_with_launcher()
    yield
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
