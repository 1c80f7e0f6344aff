"""The xpu backend's IPEX kernels on IPEX's own CPU platform, as a backend `ipex-cpu`: to be checked, not to be used.

A plugin of its own, installed by `check.py` and by nothing else: a probe is not told which kernel is meant, so the
backend `xpu` cannot call itself available on a machine without an Intel GPU, and a report of what ran on a CPU is not
to bear its name.
"""
