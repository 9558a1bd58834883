//! Memory that is not there: lengths, and the books that a real one would keep.

use crate::backend::Elem;
use crate::ledger::Accounts;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::rc::Rc;

/// The books of one rank.
pub(super) type Books = Rc<RefCell<Box<dyn Accounts>>>;

/// A block, or a view of one.
pub struct DryMem<T: Elem> {
    len: usize,
    /// Where it is given back, its size and its place; none for a view.
    home: Option<(Books, usize, usize)>,
    elem: PhantomData<T>,
}

impl<T: Elem> DryMem<T> {
    /// `size`: what the backend takes for this many elements.
    pub(super) fn take(books: &Books, len: usize, size: usize) -> Self {
        let at = books.borrow_mut().take(size);
        DryMem { len, home: Some((books.clone(), size, at)), elem: PhantomData }
    }

    pub(super) fn alias(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "view {range:?} of a block of {}", self.len);
        DryMem { len: range.len(), home: None, elem: PhantomData }
    }
}

impl<T: Elem> Drop for DryMem<T> {
    fn drop(&mut self) {
        if let Some((books, size, at)) = self.home.take() {
            books.borrow_mut().give(size, at);
        }
    }
}

/// Takes blocks of these sizes at once, and gives them back.
pub(super) fn pass(books: &Books, sizes: &[usize]) {
    let mut books = books.borrow_mut();
    let taken: Vec<usize> = sizes.iter().map(|&size| books.take(size)).collect();
    sizes.iter().zip(taken).for_each(|(&size, at)| books.give(size, at));
}
