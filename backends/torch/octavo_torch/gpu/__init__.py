"""What the accelerators on torch share: one device for CUDA, ROCm and XPU; a vendor adds a file and a tuning table."""
