"""`python -m qwenft` is `qwenft`."""

from qwenft.cli import main

if __name__ == "__main__":
    main()
