"""`python -m gpumon` and the `gpumon` command."""

from gpumon.cli import main

if __name__ == "__main__":
    main()
