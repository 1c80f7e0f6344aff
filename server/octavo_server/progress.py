"""What is being loaded, on standard error: a bar on a terminal, a line a stage elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn


class LoadingProgress:
    """Call it with a stage and a fraction in [0, 1]; use it as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=1.0, visible=False)
        self._stage = ""

    def __call__(self, stage: str, fraction: float) -> None:
        if stage != self._stage and not self._console.is_terminal:
            self._console.print(f"{stage} ...", soft_wrap=True, highlight=False, markup=False)
        self._stage = stage
        self._bar.update(self._task, description=stage, completed=fraction, visible=True)

    def __enter__(self) -> LoadingProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
