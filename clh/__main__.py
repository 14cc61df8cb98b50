"""Where the process starts, as `clh` and as `python -m clh`: signals first, then the commands."""

import os
import signal
from types import FrameType

_SHOW_CURSOR = b"\x1b[?25h\n"  # which a spinner hides


def main() -> None:
    """Run the command line."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as it is in the background, or by nohup
            signal.signal(number, _leave)
    from clh.cli import main as run

    run()


def _leave(number: int, _: FrameType | None) -> None:
    """End the process now, with the shell's exit code for an end by this signal.

    An exception would wait for threads that compute, and could come in the middle of an import.
    Databases and caches are whole at any moment, as they are when power fails.
    """
    if os.isatty(2):
        os.write(2, _SHOW_CURSOR)
    os._exit(128 + number)


if __name__ == "__main__":
    main()
