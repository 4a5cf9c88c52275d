"""What the command `steersman` runs, and `python -m steersman`."""

import sys


def main() -> int:
    """One command; returns its exit code. Ctrl-C is heard while the commands are loaded, too."""
    try:
        from steersman.cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("stopped before it began\n")
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
