"""The contract in plain NumPy: the oracle, the tutorial, and the proof that it needs no framework.

Read `device.py`: it is all that a backend has to bring. Every operation is the contract's own default.
"""
