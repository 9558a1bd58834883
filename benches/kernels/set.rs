//! A set of a case's tensors on the device. Launches cycle through several sets, so that none stays in the cache.

use crate::case::{Case, Pool, Tensor};
use cuda::device::{Device, Memory, Result};
use cuda::machine::Done;
use cuda::tensor::View;

pub struct Set<'d> {
    device: &'d Device,
    memory: Vec<Memory<&'d Device>>,
    views: Vec<View>,
    /// The initial contents of the tensors that a launch changes and the next one reads, by tensor index.
    first: Vec<(usize, Memory<&'d Device>)>,
}

impl<'d> Set<'d> {
    /// Fills the tensors from the pool, differently for each set.
    pub fn new(device: &'d Device, case: &Case, pool: &Pool, number: usize) -> Result<Self> {
        let upload = |(seed, tensor): (usize, &Tensor)| {
            // Some scratch may be empty.
            let mut memory = device.alloc(tensor.bytes().max(1))?;
            memory.write(0, &pool.fill(tensor, seed + number * case.tensors.len()))?;
            Ok(memory)
        };
        let memory: Vec<Memory<&Device>> = case.tensors.iter().enumerate().map(upload).collect::<Result<_>>()?;
        let view = |(m, t): (&Memory<&Device>, &Tensor)| {
            // SAFETY: the block holds the tensor's elements, lives as long as the set, and is used only by its
            // launches.
            unsafe { View::new(m.at(), t.len) }
        };
        let views = memory.iter().zip(&case.tensors).map(view).collect();
        Ok(Set { device, memory, views, first: Vec::new() })
    }

    /// Computes inputs from the random tensors.
    pub fn prepare(&self, case: &Case) -> Done {
        (case.prepare)(self.device, &self.views)
    }

    pub fn launch(&self, case: &Case) -> Done {
        (case.launch)(self.device, &self.views)
    }

    /// Saves the tensors that launches change.
    pub fn keep(&mut self, case: &Case) -> Result<()> {
        for i in (0..case.tensors.len()).filter(|&i| case.tensors[i].in_place()) {
            let mut copy = self.device.alloc(self.memory[i].len())?;
            copy.copy(&self.memory[i])?;
            self.first.push((i, copy));
        }
        Ok(())
    }

    /// Restores the saved tensors.
    pub fn restore(&mut self) -> Result<()> {
        self.first.iter().try_for_each(|(i, first)| self.memory[*i].copy(first))
    }

    /// The bytes of a tensor.
    pub fn read(&self, tensor: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.memory[tensor].len()];
        self.memory[tensor].read(0, &mut bytes)?;
        Ok(bytes)
    }
}
