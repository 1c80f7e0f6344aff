"""The CUDA backend of Octavo: Triton kernels on NVIDIA GPUs."""
