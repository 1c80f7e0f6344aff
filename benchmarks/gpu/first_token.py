"""One start, in a fresh process: from nothing to the first token, with a stopwatch on each phase."""

from __future__ import annotations

import time

READY = time.time()  # before everything else is imported

import argparse  # noqa: E402
import json  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spawned", type=float, required=True)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--kernel", default="auto")
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    phases = {"interpreter": READY - given.spawned}
    started = time.time()
    import numpy as np

    from benchmarks.gpu.parts.serving import engine_config
    from benchmarks.gpu.random_model import open_engine
    from benchmarks.gpu.scale import scale_of
    from benchmarks.gpu.traffic import requests_of
    from octavo.backend import DeviceConfig
    from octavo.backend.discovery import open_device

    phases["imports"] = time.time() - started
    started = time.time()
    scale = scale_of(given.backend, given.kernel, given.dry_run)
    device = open_device(DeviceConfig(backend=scale.backend, kernel=scale.kernel)).device
    torch_device = device.upload(np.zeros(1, np.int32)).device
    phases["device"] = time.time() - started
    engine = open_engine(device, torch_device, engine_config(scale), scale.model, phases.__setitem__)
    started = time.time()
    (request,) = requests_of(engine, scale.single)
    engine.add(request)
    while not any(update.sequences and update.sequences[0].token_ids for update in engine.step()):
        pass
    phases["first_token"] = time.time() - started
    print(json.dumps({"phases": phases, "at": time.time()}), flush=True)


if __name__ == "__main__":
    main()
