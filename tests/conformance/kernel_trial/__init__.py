"""The kernels on trial: the conformance suite has to catch kernels that are wrong on purpose.

With `tests/conformance` on PYTHONPATH, `python -m kernel_trial.table` makes docs/kernels-trial.md.
"""
