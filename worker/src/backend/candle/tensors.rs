//! From tensors to slices.

use crate::backend::pool::Rows;
use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, bail};

/// The last dimension as rows of a tensor whose rows are evenly spaced and each contiguous.
pub(super) fn rows<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<Rows<'a>> {
    let (&[count, width], &[stride, 1]) = (layout.dims(), layout.stride()) else {
        bail!("rows of {:?} with strides {:?} are not contiguous", layout.dims(), layout.stride());
    };
    let data = &storage.as_slice::<f32>()?[layout.start_offset()..];
    Ok(Rows { data, stride, width, count })
}

/// Calls `f` with the rows of two f32 tensors of the CPU.
pub(super) fn with_rows<T>(a: &Tensor, b: &Tensor, f: impl FnOnce(Rows<'_>, Rows<'_>) -> T) -> Result<T> {
    let ((a, la), (b, lb)) = (a.storage_and_layout(), b.storage_and_layout());
    let (Storage::Cpu(a), Storage::Cpu(b)) = (&*a, &*b) else { bail!("a tensor is not on the CPU") };
    Ok(f(rows(a, la)?, rows(b, lb)?))
}
