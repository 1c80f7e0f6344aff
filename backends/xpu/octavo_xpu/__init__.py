"""The XPU backend of Octavo: Triton kernels on Intel GPUs."""
