"""Whole steps compiled for TPUs that are not there, and what the compiler says of them held against budgets.

    python backends/xla/topologies --help

A device like any other, but for arrays that are shapes alone (`device`), goes through core's own planning, loading and
rehearsal (`steps`) until XLA has compiled the step; there the rehearsal ends (`compiling`). What the compiled program
takes of a chip (`figures`) is read from its memory analysis and its instructions (`instructions`), and judged
(`budget`).
"""
