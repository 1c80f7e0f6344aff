"""The right device under another name: what the wrong ones are made from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from octavo.backend import DeviceConfig
from octavo.reference.device import ReferenceDevice


class WrongDevice(ReferenceDevice):
    """Nothing; it is the control."""

    def __init__(self, config: DeviceConfig, name: str) -> None:
        super().__init__(config)
        self.info = replace(self.info, backend=name)

    def claim(self, **claims: Any) -> None:
        """Change some of the capabilities."""
        self.info = replace(self.info, capabilities=replace(self.info.capabilities, **claims))
