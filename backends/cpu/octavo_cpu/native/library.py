"""The compiled kernels as Python functions on torch tensors.

Nothing is checked here: contiguity, dtypes and int32 indices are up to the caller, `octavo_cpu.ops`.
"""

from __future__ import annotations

import ctypes
import weakref
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_void_p

import torch

from octavo.backend import Activation, AttentionMetadata, BackendUnavailableError
from octavo_cpu.native.isa import REBUILD, Isa, library_path
from octavo_cpu.native.kv import PagedKV

ABI_VERSION = 1
MAX_HEAD_SIZE = 256
TYPES = {torch.float32: 0, torch.bfloat16: 1}
_ACTIVATIONS = {Activation.SILU: 0, Activation.GELU: 1, Activation.GELU_TANH: 2, Activation.RELU: 3}


class _Attention(Structure):
    """OctavoAttention of api.h."""

    _fields_ = (
        *(
            (name, c_void_p)
            for name in ("q", "out", "cache", "query_starts", "context_lengths", "block_tables", "sinks")
        ),
        *((name, c_int64) for name in ("q_stride", "tokens", "heads", "kv_heads", "head_size")),
        *((name, c_int64) for name in ("sequences", "max_blocks", "block_size")),
        *((name, c_float) for name in ("scale", "softcap")),
        *((name, c_int32) for name in ("window", "q_type", "cache_type")),
    )


class _Write(Structure):
    """OctavoWrite of api.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("cache", "q", "q_out", "k", "v", "slots", "positions", "cos_sin")),
        *((name, c_int64) for name in ("q_stride", "k_stride", "v_stride", "tokens", "heads", "kv_heads", "head_size")),
        *((name, c_int64) for name in ("block_size", "rotary_size")),
        *((name, c_int32) for name in ("interleaved", "type", "cache_type")),
    )


_SIGNATURES: dict[str, tuple[list[object], object]] = {
    "octavo_abi_version": ([], c_int32),
    "octavo_isa": ([], c_char_p),
    "octavo_pool": ([c_void_p, c_int32], c_void_p),
    "octavo_pool_free": ([c_void_p], None),
    "octavo_huge_pages": ([c_void_p, c_int64], None),
    "octavo_panel": ([], c_int64),
    "octavo_pack": ([c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_int32], None),
    "octavo_linear": (
        [c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_int64, c_void_p, c_int32],
        None,
    ),
    "octavo_embedding": ([c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_int32], None),
    "octavo_paged_attention": ([c_void_p, POINTER(_Attention)], None),
    "octavo_write_kv": ([c_void_p, POINTER(_Write)], None),
    "octavo_rms_norm": (
        [c_void_p, c_void_p, c_void_p, c_void_p, c_float, c_int64, c_int64, c_void_p, c_void_p, c_int32],
        None,
    ),
    "octavo_gated_activation": ([c_void_p, c_void_p, c_int64, c_int64, c_int32, c_void_p, c_int32], None),
    "octavo_top_k": ([c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p], None),
}


class Library:
    """One build of the kernels, on one thread pool.

    gomp_parallel: address of the function that opens a parallel region, or None to run on the caller's thread alone.
    Raises BackendUnavailableError for a build that is missing or is not of this version.
    """

    def __init__(self, isa: Isa, gomp_parallel: int | None, threads: int) -> None:
        path = library_path(isa)
        if path is None:
            raise BackendUnavailableError(f"The {isa.value} kernels were not built on installation: {REBUILD}.")
        self._c = ctypes.CDLL(str(path))
        built = self._c.octavo_abi_version()
        if built != ABI_VERSION:
            raise BackendUnavailableError(
                f"{path.name} was built from version {built} of the kernels and this package speaks version "
                f"{ABI_VERSION}: {REBUILD}."
            )
        for name, (arguments, result) in _SIGNATURES.items():
            function = getattr(self._c, name)
            function.argtypes, function.restype = arguments, result
        self.isa = isa
        self.panel: int = self._c.octavo_panel()
        self._pool = self._c.octavo_pool(gomp_parallel, threads)
        weakref.finalize(self, self._c.octavo_pool_free, self._pool)

    def use_huge_pages(self, tensor: torch.Tensor) -> None:
        self._c.octavo_huge_pages(tensor.data_ptr(), tensor.numel() * tensor.element_size())

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        """weight [out, in] -> panels [ceil(out / panel), in, panel]; columns past the last are zero."""
        out, inner = weight.shape
        packed = torch.empty((-(-out // self.panel), inner, self.panel), dtype=weight.dtype)
        self.use_huge_pages(packed)
        self._c.octavo_pack(self._pool, weight.data_ptr(), out, inner, packed.data_ptr(), TYPES[weight.dtype])
        return packed

    def linear(self, x: torch.Tensor, panels: torch.Tensor, bias: torch.Tensor | None, out: int) -> torch.Tensor:
        """x [rows, in], panels of the same dtype, bias float32 [out] -> [rows, out]."""
        rows, inner = x.shape
        y = torch.empty((rows, out), dtype=x.dtype)
        self._c.octavo_linear(
            self._pool,
            x.data_ptr(),
            rows,
            inner,
            panels.data_ptr(),
            None if bias is None else bias.data_ptr(),
            out,
            y.data_ptr(),
            TYPES[x.dtype],
        )
        return y

    def embedding(self, ids: torch.Tensor, panels: torch.Tensor) -> torch.Tensor:
        """Rows of a packed matrix. ids int32 [tokens] -> [tokens, in]."""
        rows, inner = ids.shape[0], panels.shape[1]
        y = torch.empty((rows, inner), dtype=panels.dtype)
        self._c.octavo_embedding(
            self._pool, panels.data_ptr(), ids.data_ptr(), rows, inner, y.data_ptr(), TYPES[panels.dtype]
        )
        return y

    def write_kv(self, kv: PagedKV, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor) -> None:
        """k, v [tokens, kv_heads, head_size]; each token contiguous, slots int32 [tokens]."""
        request = _Write(kv.memory.data_ptr(), None, None, k.data_ptr(), v.data_ptr(), slots.data_ptr())
        self._write(request, kv, k, v)

    def rotary_write_kv(
        self,
        kv: PagedKV,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        positions: torch.Tensor,
        cos_sin: torch.Tensor,
        interleaved: bool,
        slots: torch.Tensor,
    ) -> torch.Tensor:
        """Rotates q and k and writes k and v. cos_sin float32 [positions, rotary_size] -> the rotated q."""
        turned = torch.empty(q.shape, dtype=q.dtype)
        request = _Write(
            kv.memory.data_ptr(),
            q.data_ptr(),
            turned.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            slots.data_ptr(),
            positions.data_ptr(),
            cos_sin.data_ptr(),
            q.stride(0),
        )
        request.heads, request.rotary_size, request.interleaved = q.shape[1], cos_sin.shape[1], interleaved
        self._write(request, kv, k, v)
        return turned

    def _write(self, request: _Write, kv: PagedKV, k: torch.Tensor, v: torch.Tensor) -> None:
        request.k_stride, request.v_stride = k.stride(0), v.stride(0)
        request.tokens, request.kv_heads, request.head_size = k.shape
        request.block_size = kv.block_size
        request.type, request.cache_type = TYPES[k.dtype], TYPES[kv.memory.dtype]
        self._c.octavo_write_kv(self._pool, request)

    def paged_attention(
        self,
        q: torch.Tensor,
        kv: PagedKV,
        meta: AttentionMetadata,
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """q [tokens, heads, head_size], each token contiguous; sinks float32 [heads] -> the same shape, contiguous."""
        tokens, heads, size = q.shape
        sequences, blocks = meta.block_tables.shape
        out = torch.empty(q.shape, dtype=q.dtype)
        request = _Attention(
            q.data_ptr(),
            out.data_ptr(),
            kv.memory.data_ptr(),
            meta.query_starts.data_ptr(),
            meta.context_lengths.data_ptr(),
            meta.block_tables.data_ptr(),
            None if sinks is None else sinks.data_ptr(),
            q.stride(0),
            tokens,
            heads,
            kv.kv_heads,
            size,
            sequences,
            blocks,
            kv.block_size,
            scale,
            softcap or 0.0,
            window or 0,
            TYPES[q.dtype],
            TYPES[kv.memory.dtype],
        )
        self._c.octavo_paged_attention(self._pool, request)
        return out

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x [..., hidden], residual like x, weight [hidden], all contiguous and of one dtype -> (normed, sum)."""
        width = x.shape[-1]
        normed = torch.empty(x.shape, dtype=x.dtype)
        total = x if residual is None else torch.empty(x.shape, dtype=x.dtype)
        self._c.octavo_rms_norm(
            self._pool,
            x.data_ptr(),
            None if residual is None else residual.data_ptr(),
            weight.data_ptr(),
            eps,
            x.numel() // width,
            width,
            normed.data_ptr(),
            total.data_ptr(),
            TYPES[x.dtype],
        )
        return normed, total

    def gated_activation(self, x: torch.Tensor, kind: Activation) -> torch.Tensor:
        """x [rows, 2 * width], contiguous -> [rows, width]."""
        rows, width = x.shape[0], x.shape[1] // 2
        y = torch.empty((rows, width), dtype=x.dtype)
        self._c.octavo_gated_activation(
            self._pool, x.data_ptr(), rows, width, _ACTIVATIONS[kind], y.data_ptr(), TYPES[x.dtype]
        )
        return y

    def top_k(self, x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """x float32 [rows, n], contiguous -> values [rows, k] in falling order and int32 indices."""
        rows, n = x.shape
        values = torch.empty((rows, k), dtype=torch.float32)
        ids = torch.empty((rows, k), dtype=torch.int32)
        self._c.octavo_top_k(self._pool, x.data_ptr(), rows, n, k, values.data_ptr(), ids.data_ptr())
        return values, ids
