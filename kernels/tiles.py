"""What the Triton kernels share: reading a plan's row, and moving a tile of a strided tensor. Inlined by Triton."""

import triton
import triton.language as tl


@triton.jit
def load_row(row, seq_ptr, end_ptr, slot_ptr, cu_seqlens_ptr, num_seqs, num_slots, num_tokens):
    """Sequence, end and slot of a row, where its sequence starts and stops, and whether it may be used.

    A row that is padding or out of range reads nothing through its values; the kernel has to leave then.
    """
    slot = tl.load(slot_ptr + row)
    seq = tl.load(seq_ptr + row).to(tl.int64)
    end = tl.load(end_ptr + row)
    live = (slot >= 0) & (slot < num_slots) & (seq >= 0) & (seq < num_seqs)
    start = tl.load(cu_seqlens_ptr + seq, mask=live, other=0).to(tl.int64)
    stop = tl.load(cu_seqlens_ptr + seq + 1, mask=live, other=0).to(tl.int64)
    live = live & (end >= start) & (end <= stop) & (start >= 0) & (stop <= num_tokens)
    return seq, end, slot, start, stop, live


@triton.jit
def tile(base_ptr, rows, columns, row_stride, column_stride):
    """Pointers [rows, columns] of a tensor with these strides (elements)."""
    return base_ptr + rows[:, None] * row_stride + columns[None, :] * column_stride


@triton.jit
def load_tile(base_ptr, rows, columns, row_stride, column_stride, row_mask, column_mask):
    """The values there; zeros where a mask is false."""
    return tl.load(
        tile(base_ptr, rows, columns, row_stride, column_stride),
        mask=row_mask[:, None] & column_mask[None, :],
        other=0.0,
    )


@triton.jit
def store_tile(base_ptr, rows, columns, row_stride, column_stride, row_mask, column_mask, values):
    """Write values, rounded to the tensor's dtype, where both masks are true."""
    tl.store(
        tile(base_ptr, rows, columns, row_stride, column_stride),
        values.to(base_ptr.dtype.element_ty),
        mask=row_mask[:, None] & column_mask[None, :],
    )
