"""`python -m drama`: the command line."""

from drama.cli import main

if __name__ == "__main__":
    main()
