"""OpenAI-compatible HTTP server and command line of the Octavo inference runtime."""

__version__ = "0.1.0"
