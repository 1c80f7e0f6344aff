"""`python -m octavo_server` is the `octavo` command."""

from octavo_server.cli import main

if __name__ == "__main__":
    main()
