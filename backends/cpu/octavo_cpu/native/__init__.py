"""The native kernels: C++ sources beside this file, and what loads and calls them."""
