//! Row-major matrices that own their blocks, and views of matrices inside flat blocks.

use super::Backend;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};

/// An element type: f32, bf16, and u32 for token ids.
pub trait Elem: bytemuck::Pod + Default + Debug + PartialEq + Send + Sync + 'static {
    /// Name of the type in safetensors.
    const NAME: &'static str;
}

impl Elem for f32 {
    const NAME: &'static str = "F32";
}
impl Elem for half::bf16 {
    const NAME: &'static str = "BF16";
}
impl Elem for u32 {
    const NAME: &'static str = "U32";
}

/// A row-major matrix that owns its block; dropping it gives the block back to the backend.
pub struct Tensor<B: Backend, T: Elem> {
    pub mem: B::Mem<T>,
    rows: usize,
    cols: usize,
}

/// Activations and weights: bf16 or f32, chosen once per process.
pub type Act<B> = Tensor<B, <B as Backend>::Act>;
/// Gradients, statistics, optimizer state: always f32.
pub type Acc<B> = Tensor<B, f32>;

impl<B: Backend, T: Elem> Tensor<B, T> {
    /// A tensor that owns this block. Only backends call this.
    pub fn from_mem(mem: B::Mem<T>, rows: usize, cols: usize) -> Self {
        Tensor { mem, rows, cols }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// The same elements under another shape.
    pub fn reshape(self, rows: usize, cols: usize) -> Self {
        assert_eq!(self.len(), rows * cols, "reshape of {:?} to {:?}", self.shape(), (rows, cols));
        Tensor { rows, cols, ..self }
    }
}

/// A matrix inside a flat block, borrowed from it.
pub struct TensorView<'a, B: Backend, T: Elem> {
    tensor: Tensor<B, T>,
    owner: PhantomData<&'a T>,
}

/// A mutable [`TensorView`].
pub struct TensorViewMut<'a, B: Backend, T: Elem> {
    tensor: Tensor<B, T>,
    owner: PhantomData<&'a mut T>,
}

impl<B: Backend, T: Elem> Tensor<B, T> {
    /// The elements `at ..` of this block as a matrix.
    pub fn view(&self, at: usize, rows: usize, cols: usize) -> TensorView<'_, B, T> {
        // SAFETY: the view cannot outlive `self` (its lifetime) and is only read through `Deref`,
        // while `self` stays borrowed shared; `alias` checks the range.
        let mem = unsafe { B::alias(&self.mem, at..at + rows * cols) };
        TensorView { tensor: Tensor { mem, rows, cols }, owner: PhantomData }
    }

    /// A range of rows.
    pub fn view_rows(&self, rows: Range<usize>) -> TensorView<'_, B, T> {
        self.view(rows.start * self.cols, rows.len(), self.cols)
    }

    /// A mutable `view_rows`.
    pub fn view_rows_mut(&mut self, rows: Range<usize>) -> TensorViewMut<'_, B, T> {
        self.view_mut(rows.start * self.cols, rows.len(), self.cols)
    }

    /// A mutable `view`.
    pub fn view_mut(&mut self, at: usize, rows: usize, cols: usize) -> TensorViewMut<'_, B, T> {
        // SAFETY: `self` stays borrowed exclusively for the view's lifetime, so this is the only view.
        unsafe { TensorViewMut::of(self, at, rows, cols) }
    }
}

impl<'a, B: Backend, T: Elem> TensorViewMut<'a, B, T> {
    /// A mutable view, for callers that make several views of one block.
    ///
    /// # Safety
    /// During all of 'a the block must stay allocated, nothing else may use it, and no two views may share an element.
    pub unsafe fn of(block: &mut Tensor<B, T>, at: usize, rows: usize, cols: usize) -> Self {
        // SAFETY: by this function's contract; `alias` checks the range.
        let mem = unsafe { B::alias(&block.mem, at..at + rows * cols) };
        TensorViewMut { tensor: Tensor { mem, rows, cols }, owner: PhantomData }
    }
}

impl<B: Backend, T: Elem> Deref for TensorView<'_, B, T> {
    type Target = Tensor<B, T>;
    fn deref(&self) -> &Tensor<B, T> {
        &self.tensor
    }
}

impl<B: Backend, T: Elem> Deref for TensorViewMut<'_, B, T> {
    type Target = Tensor<B, T>;
    fn deref(&self) -> &Tensor<B, T> {
        &self.tensor
    }
}

impl<B: Backend, T: Elem> DerefMut for TensorViewMut<'_, B, T> {
    fn deref_mut(&mut self) -> &mut Tensor<B, T> {
        &mut self.tensor
    }
}
