"""What Triton's interpreter gets wrong, in one place.

The interpreter multiplies the raw bits of bfloat16 in `tl.dot` and truncates when it converts float32 to bfloat16.
Kernels call these two helpers with the constant INTERPRETED, which is false in all code that is compiled.
"""

import triton
import triton.language as tl


@triton.jit
def dot(a, b, accumulator, INTERPRETED: tl.constexpr):
    """a @ b + accumulator in float32; a and b of one dtype. Float32 operands are multiplied as such, not as tf32."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), accumulator, input_precision="ieee")
    return tl.dot(a, b, accumulator, input_precision="ieee")


@triton.jit
def rounded(x, DTYPE: tl.constexpr, INTERPRETED: tl.constexpr):
    """Float32 to DTYPE, to the nearest and among equals to the even one."""
    if INTERPRETED and DTYPE == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = bits + 0x7FFF + ((bits >> 16) & 1)
        nearest = (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
        x = tl.where(x == x, nearest, x)
    return x.to(DTYPE)
