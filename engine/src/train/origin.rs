//! Where a step that is not finite went wrong: its micro-batches are computed again, with a look at every op's result.

use crate::backend::{Backend, Origin, all_finite};
use crate::batch::Samples;
use crate::error::{Error, Result};
use crate::layout::buckets::Part;
use crate::time::Phase;
use crate::train::clock::Clock;
use crate::train::trainer::Trainer;

impl<B: Backend> Trainer<B> {
    /// The first op on this rank whose result is not finite when `step` is computed again, from the weights that it
    /// had: a step that is not finite updates nothing, nor does one after it. All ranks call this together.
    pub fn origin_of(&mut self, step: u64, data: &dyn Samples) -> Result<Option<Origin>> {
        let done = std::mem::replace(&mut self.step, step - 1);
        self.b.begin_checks();
        let mut clock = Clock::start(&self.b, Phase::Data);
        let computed = self.gradients(data, &mut clock).map(|(grads, _)| self.drop_gradients(grads));
        let found = self.b.end_checks();
        self.step = done;
        computed.map(|()| found)
    }

    /// The first tensor of this rank's main parameters that has a number which is not finite.
    pub fn weights_not_finite(&self) -> Result<Option<String>> {
        for (shard, bucket) in self.optim.shards.iter().zip(&self.layout.buckets) {
            let copy = self.b.copy_to_host_async(&shard.state[0].1);
            let values = self.b.wait_host(copy).map_err(|fault| Error::run(fault.to_string()))?;
            let parts = bucket.parts(&shard.range);
            let bad = |part: &&Part<'_>| !all_finite(&values[part.at..part.at + part.rect.len()]);
            if let Some(part) = parts.iter().find(bad) {
                return Ok(Some(part.tensor.name.clone()));
            }
        }
        Ok(None)
    }
}
