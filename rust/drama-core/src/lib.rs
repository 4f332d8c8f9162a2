//! Replay storage, samplers, Atari frame processing and the memory of vector environments. Knows nothing of Python.
#![deny(missing_docs)]

mod add;
mod column;
mod error;
mod finals;
mod frame;
mod gather;
mod memory;
mod packed;
mod parallel;
mod pool;
mod ring;
mod sampler;
mod schema;
mod snapshot;
mod starts;
mod sticky;
mod transition;
mod vector;

pub use error::{Error, Result};
pub use frame::{AreaResize, Colours, Moment, Screens, Source, Stack};
pub use gather::{Sequences, gather, gather_sequences};
pub use memory::try_collect;
pub use parallel::cores;
pub use pool::{Lease, Pool};
pub use rand_chacha::ChaCha8Rng;
pub use ring::Ring;
pub use sampler::{Counters, DynamicFrequency, Priorities, Prioritized, Role, draw_recent, draw_uniform, seeded};
pub use schema::{DType, Field, Schema};
pub use snapshot::{Live, Saved, load, load_stored, save};
pub use starts::Starts;
pub use sticky::Sticky;
pub use transition::{Steps, gather_transitions, reward};
#[cfg(unix)]
pub use vector::die_with_parent;
pub use vector::{Board, Outcome};
