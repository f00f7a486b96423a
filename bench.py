"""Command-line entry; the guard keeps spawned workers from starting a second run."""

from bench.cli import main

if __name__ == "__main__":
    main()
