"""The CPU backend: torch tensors, native kernels. Importing it imports nothing else."""
