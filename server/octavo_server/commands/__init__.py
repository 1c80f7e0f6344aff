"""The commands of `octavo`, one a file; `octavo_server.cli` imports each only when it is run."""
