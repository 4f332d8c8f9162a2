//! Replay storage, samplers and Atari frame processing. Knows nothing of Python.
#![deny(missing_docs)]

mod error;
mod frame;
mod gather;
mod ring;
mod sampler;
mod schema;
mod snapshot;

pub use error::{Error, Result};
pub use frame::{AreaResize, Colours, Screens, Slot};
pub use gather::gather;
pub use rand_chacha::ChaCha8Rng;
pub use ring::Ring;
pub use sampler::{Counters, DynamicFrequency, Role, draw_uniform, seeded};
pub use schema::{DType, Field, Schema};
pub use snapshot::{Saved, load, save};
