//! Waiting for the device with an eye on everything that may keep it from coming: its own faults, NCCL's, and ranks
//! that do not answer.

use super::fetch::Fetch;
use super::flights::first_unfinished;
use super::rank::Rank;
use engine::backend::{Elem, Fault};
use std::thread;
use std::time::{Duration, Instant};

/// For which the host does nothing but look: steps of small models are short.
const SPIN: Duration = Duration::from_micros(200);
const NAP: Duration = Duration::from_micros(50);
/// How often NCCL is asked.
const ROUND: Duration = Duration::from_millis(20);

impl Rank {
    /// Blocks until the copy is here, for as long as the device gets on.
    pub(super) fn watch<T: Elem>(&self, fetch: &Fetch<T>) -> Result<(), Fault> {
        let Some(done) = fetch.done() else {
            return self.first_fault();
        };
        let start = Instant::now();
        let (mut round, mut progress, mut since) = (start, self.device.progress().now(), start);
        while !done.is_past().map_err(|error| self.fault(&self.device.fault(error)))? {
            if start.elapsed() < SPIN {
                std::hint::spin_loop();
                continue;
            }
            thread::sleep(NAP);
            if round.elapsed() < ROUND {
                continue;
            }
            round = Instant::now();
            self.first_fault()?;
            self.links_are_well()?;
            if self.device.progress().now() != progress {
                (progress, since) = (self.device.progress().now(), Instant::now());
            } else if since.elapsed() > self.outlook.patience {
                return Err(self.stuck());
            }
        }
        Ok(())
    }

    /// What NCCL has seen go wrong, with the call that it was seen in.
    fn links_are_well(&self) -> Result<(), Fault> {
        self.links().iter().try_for_each(|link| {
            link.error().map_err(|what| {
                let call = link.flights.unfinished().map_or(link.flights.name.clone(), |(_, call)| call);
                self.fault(&format!("{call}: {what}"))
            })
        })
    }

    /// Nothing has moved for too long: the collectives that others have not come to, or where the device is.
    fn stuck(&self) -> Fault {
        let waited = format!("nothing has moved for {} s", self.outlook.patience.as_secs());
        let links = self.links();
        match first_unfinished(links.iter().map(|link| &*link.flights)) {
            None => self.fault(&self.device.stuck(&waited)),
            Some(late) => self.fault(&format!("{waited}: {late}")),
        }
    }
}
