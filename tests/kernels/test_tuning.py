"""Tuning tables: which row is taken, what a wrong one says, and that the vendors' own can be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo_torch.kernels.ahead_of_time.rows import WatchedTable, dead_rows, vendor_tables
from octavo_torch.kernels.catalog import CATALOG, tunables
from octavo_torch.kernels.kernel import Kernel
from octavo_torch.kernels.targets import TARGETS
from octavo_torch.kernels.tuning import Tunable, TuningError, TuningTable

TUNABLE = Tunable("product", facts=("dtype", "rows"), defaults={"tile": 64, "num_warps": 4})
KERNEL = Kernel("product", len, (TUNABLE,), lambda: iter(()))
TABLE = """
[[product]]
arch = ["sm_90", "sm_100"]
dtype = ["bfloat16", "float16"]
max_rows = 16
tile = 128

[[product]]
arch = ["sm_90"]
min_rows = 8
max_rows = 32
num_warps = 8

[[product]]
tile = 32
"""


def table(text: str, folder: Path) -> TuningTable:
    path = folder / "tuning.toml"
    path.write_text(text)
    return TuningTable.read(path, [TUNABLE])


@pytest.mark.parametrize(
    ("arch", "dtype", "rows", "tile", "num_warps"),
    [
        ("sm_90", "bfloat16", 16, 128, 4),  # the first row that matches, over the kernel's defaults
        ("sm_90", "bfloat16", 17, 64, 8),
        ("sm_90", "float32", 8, 64, 8),
        ("sm_90", "float32", 7, 32, 4),
        ("sm_90", "float32", 33, 32, 4),
        ("sm_100", "bfloat16", 17, 32, 4),
        ("sm_80", "bfloat16", 16, 32, 4),  # a row without architectures is for all
    ],
)
def test_the_first_row_whose_conditions_hold_is_taken(
    tmp_path: Path, arch: str, dtype: str, rows: int, tile: int, num_warps: int
) -> None:
    chosen = table(TABLE, tmp_path).choose(TUNABLE, arch, dtype=dtype, rows=rows)
    assert chosen == {"tile": tile, "num_warps": num_warps}


def test_an_empty_table_gives_the_kernel_s_defaults() -> None:
    assert TuningTable().choose(TUNABLE, "sm_90", dtype="bfloat16", rows=1) == TUNABLE.defaults


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[softmax]]\ntile = 1\n", "there is no kernel 'softmax'; there are product."),
        ("[[product]]\nstages = 2\n", "stages = 2 means nothing. Parameters are integers: tile, num_warps."),
        ("[[product]]\nmin_columns = 2\n", "min_columns = 2 means nothing."),
        ('[[product]]\ntile = "large"\n', "tile = 'large' means nothing."),
        ("[[product]\n", "cannot be read"),
    ],
)
def test_a_wrong_table_says_what_is_possible(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(TuningError, match=r"tuning\.toml") as raised:
        table(text, tmp_path)
    assert said in str(raised.value)


def test_every_vendor_s_table_can_be_read() -> None:
    tables = vendor_tables()
    assert sorted(tables) == ["cuda", "hip", "xpu"]
    for generator, path in tables.items():
        read = TuningTable.read(path, tunables())
        archs = {arch for rows in read.rows.values() for row in rows for arch in row.archs}
        assert all(arch in TARGETS and TARGETS[arch].generator == generator for arch in archs)


def test_no_two_kernels_share_a_name_or_specimens_theirs() -> None:
    assert len({kernel.name for kernel in CATALOG}) == len(CATALOG)
    assert len({tunable.kernel for tunable in tunables()}) == len(tunables())
    for kernel in CATALOG:
        names = [specimen.name for specimen in kernel.specimens()]
        assert len(set(names)) == len(names) > 0, f"{kernel.name}: {names}"


def test_rows_that_nothing_reaches_are_found(tmp_path: Path) -> None:
    watched = WatchedTable(table(TABLE, tmp_path).rows)
    targets = [TARGETS["sm_90"], TARGETS["sm_80"]]
    watched.choose(TUNABLE, "sm_90", dtype="bfloat16", rows=1)
    watched.choose(TUNABLE, "sm_80", dtype="bfloat16", rows=1)
    # The first row's sm_100 was not asked for; the third is for all, and one architecture is enough.
    assert list(dead_rows(watched, targets, [KERNEL])) == [
        "product: no specimen reaches row 2 of the tuning table on sm_90."
    ]


def test_a_row_for_an_architecture_that_does_not_exist_is_found(tmp_path: Path) -> None:
    watched = WatchedTable(table('[[product]]\narch = ["sm_9O"]\ntile = 1\n', tmp_path).rows)
    assert list(dead_rows(watched, [TARGETS["sm_90"]], [KERNEL])) == [
        "product: no specimen reaches row 1 of the tuning table on sm_9O."
    ]
