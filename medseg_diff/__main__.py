"""`python -m medseg_diff`."""

from medseg_diff.cli import main

if __name__ == "__main__":
    main()
