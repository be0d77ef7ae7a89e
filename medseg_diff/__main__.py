"""What `python -m medseg_diff` runs: the command line."""

from medseg_diff.cli import main

if __name__ == "__main__":
    main()
