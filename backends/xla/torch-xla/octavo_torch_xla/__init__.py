"""The flavour `xla:torch` of the XLA backend: octavo-torch's operations on torch-xla's lazy tensors.

A package of its own, in an environment of its own: torch-xla's last release loads with torch 2.9 alone, which none of
the other backends is held to. `xla` itself runs on JAX.
"""
