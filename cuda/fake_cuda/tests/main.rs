//! The stand-in's promises: order and its absence on streams, faults that stay, collectives against plain sums.

mod alone;
mod faults;
mod links;
mod memory;
mod play;
mod ranks;
mod streams;
