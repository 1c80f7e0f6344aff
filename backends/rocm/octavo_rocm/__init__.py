"""The ROCm backend of Octavo: Triton kernels on AMD GPUs."""
