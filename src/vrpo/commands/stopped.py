"""What a command that was stopped says: what is kept, and that the same command goes on."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def keeping(place: Path) -> Iterator[None]:
    """After Ctrl-C or SIGTERM, the command ends with what is in `place`."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted: what is done is kept in {place}; the same command goes on", file=sys.stderr, flush=True)
        raise SystemExit(130) from None
