"""The short table at the end of a check, in plain text: the last lines are what a remote machine shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.gpu.document import DRY_RUN

_PEERS = ("sdpa", "flex", "flashinfer")


def lines(document: Mapping[str, Any]) -> Iterator[str]:
    """The table, line by line."""
    found = {one["name"]: one for one in document["measurements"]}
    if document["dry_run"]:
        yield f"*** {DRY_RUN} ***"
    yield from _head(document, found)
    yield from _conformance(found)
    yield from _attention(found)
    yield from _operations(found)
    yield from _serving(found)
    yield from _goals(document["goals"])
    yield from _troubles(document)
    if document["dry_run"]:
        yield f"*** {DRY_RUN} ***"


def _head(document: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    facts = _figures(found, "facts")
    versions = facts.get("versions", {})
    shown = ", ".join(f"{name} {versions[name]}" for name in ("torch", "triton", "transformers") if name in versions)
    yield f"{facts.get('device', 'no device')} ({facts.get('arch', '')}), driver {facts.get('driver', '')}, {shown}"
    yield f"{document['date']}, commit {document['commit'] or 'unknown'}, {document['seconds']:.0f} s"
    copy, matrix = _figures(found, "ceiling/copy"), _figures(found, "ceiling/matrix")
    if copy and matrix:
        yield (
            f"ceilings: copy {copy['bytes_per_second'] / 1e12:.2f} TB/s, "
            f"bf16 product {matrix['flops_per_second'] / 1e12:.0f} TFLOP/s"
        )


def _conformance(found: Mapping[str, Any]) -> Iterator[str]:
    for name in ("conformance/quick", "conformance/whole"):
        if figures := _figures(found, name):
            yield (
                f"{name}: {figures['passed']} passed, {figures['failed']} failed, "
                f"{figures['run']} of {figures['cases']} cases run"
            )
            for failure in figures["failures"][:5]:
                yield f"  failed: {failure['case']}: {failure['reason'][:120]}"


def _attention(found: Mapping[str, Any]) -> Iterator[str]:
    for subject, share in (("decode", "of_copy_bandwidth"), ("prefill", "of_matrix_rate")):
        names = [name for name in found if name.startswith(f"{subject}/")]
        if names:
            yield f"{subject + ' attention':<40}{'us':>9}{share.replace('_', ' '):>20}" + "".join(
                f"{peer:>11}" for peer in _PEERS
            )
        for name in names:
            shape = name.partition("/")[2]
            figures = _figures(found, name)
            cells = [_share(_figures(found, f"{subject}-{peer}/{shape}"), share) for peer in _PEERS]
            yield f"  {shape:<38}{_micro(figures):>9}{_share(figures, share):>20}" + "".join(
                f"{cell:>11}" for cell in cells
            )


def _operations(found: Mapping[str, Any]) -> Iterator[str]:
    subjects = ("rms_norm/", "rotary_write_kv/", "gated_activation/", "linear/", "quantized_linear/",
                "mixture_of_experts/", "top_k/", "top_k-torch/")  # fmt: skip
    names = [name for subject in subjects for name in found if name.startswith(subject)]
    if names:
        yield f"{'operations':<40}{'us':>9}{'of copy bandwidth':>20}{'of matrix rate':>16}"
    for name in names:
        figures = _figures(found, name)
        yield (
            f"  {name:<38}{_micro(figures):>9}{_share(figures, 'of_copy_bandwidth'):>20}"
            f"{_share(figures, 'of_matrix_rate'):>16}"
        )


def _serving(found: Mapping[str, Any]) -> Iterator[str]:
    for name, measured in found.items():
        figures = measured["figures"]
        if "output_tokens_per_second" in figures:
            note = f", {figures['shortened']}" if figures["shortened"] else ""
            yield f"{name:<60}{figures['output_tokens_per_second']:>10.0f} tokens/s in {figures['seconds']:.1f} s{note}"
        elif "seconds_per_token" in figures:
            first = 1e3 * figures["time_to_first_token"]
            yield f"{name:<60}{1e3 * figures['seconds_per_token']:>10.2f} ms a token, first after {first:.1f} ms"
        elif "first_token" in figures:
            yield f"{name:<60}{figures['first_token']:>10.1f} s to the first token"
        elif name == "serving/load_rate" and figures:
            yield f"{name:<60}{figures['bytes_per_second'] / 1e9:>10.1f} GB/s from a mapped file"


def _goals(goals: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield f"{'goal':<48}{'':>14}{'measured':>10}"
    for goal in goals:
        value = "open" if goal["value"] is None else f"{goal['value']:.3g}"
        verdict = {True: "met", False: "not met", None: "not judged"}[goal["met"]]
        note = f"; {goal['note']}" if goal["note"] else ""
        yield f"  {goal['name']:<46}{goal['goal']:>14}{value:>10}  {verdict}{note}"


def _troubles(document: Mapping[str, Any]) -> Iterator[str]:
    """What did not come to its end, in a line each."""
    for name, part in document["parts"].items():
        if part["reason"]:
            yield f"part {name}: {part['reason'][:300]}"
    skipped = 0
    for one in document["measurements"]:
        if one["status"] in ("failed", "lost"):
            yield f"{one['status']}: {one['name']}: {one['reason'][:200]}"
        skipped += one["status"] == "skipped"
    if skipped:
        yield f"{skipped} measurements were skipped for want of time"


def _figures(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    figures: Mapping[str, Any] = found.get(name, {}).get("figures", {})
    return figures


def _micro(figures: Mapping[str, Any]) -> str:
    return f"{1e6 * figures['seconds']['median']:.1f}" if "seconds" in figures else "-"


def _share(figures: Mapping[str, Any], name: str) -> str:
    return f"{figures[name]:.2f}" if name in figures else "-"
