//! The fake CUDA libraries themselves: the order on and between streams, faults that stay, collectives against plain
//! sums.

mod alone;
mod faults;
mod links;
mod memory;
mod play;
mod ranks;
mod streams;
