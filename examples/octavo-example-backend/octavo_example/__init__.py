"""An example of a backend for Octavo; `docs/vendor-guide.md` explains it line by line."""
