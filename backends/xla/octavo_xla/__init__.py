"""The XLA backend of Octavo: JAX, with Pallas kernels on TPUs."""
