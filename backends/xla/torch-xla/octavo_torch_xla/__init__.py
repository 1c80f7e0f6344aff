"""The operations that the PyTorch backends share, on torch-xla's lazy tensors: to be checked, not to be used.

A plugin of its own, installed by `check.py` and by nothing else: torch-xla loads with torch 2.9 alone, so it can share
no environment with the backends that are used, and a report of what ran here is not to bear the name of the backend
`xla`, which runs on JAX.
"""
