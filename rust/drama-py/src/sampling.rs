//! What the arguments of a draw mean, and the draw itself.

use drama_core::{ChaCha8Rng, Error, Ring, Role, Starts, draw_recent, draw_uniform};
use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    types::{PyString, PyTuple},
};

use crate::{arrays::number, dfs::DynamicFrequency, error::lock, prioritized::Prioritized};

/// A sampler to draw with.
pub(crate) enum Sampler {
    Uniform { replacement: bool },
    Recent,
    Frequency(Py<DynamicFrequency>, Role),
    Prioritized { sampler: Py<Prioritized>, replacement: bool, beta: f64 },
}

/// Slots of the starts, and their weights where they differ.
pub(crate) struct Drawn {
    pub(crate) slots: Vec<usize>,
    weights: Option<Vec<f32>>,
}

impl Sampler {
    /// The sampler as Python names it: "uniform", "distinct" (uniform without replacement) or "recent"; a
    /// `DynamicFrequency` with its role, "world_model" or "imagination"; a `Prioritized` with whether a start can come
    /// twice, and beta.
    pub(crate) fn new(source: &Bound<'_, PyAny>) -> PyResult<Self> {
        let refuse = |what, got, known| Err(PyValueError::new_err(format!("{what} must be {known}, got {got:?}")));
        // By hand: to try one type after the other costs more than a small draw.
        if let Ok(name) = source.cast::<PyString>() {
            return match name.to_str()? {
                "uniform" => Ok(Self::Uniform { replacement: true }),
                "distinct" => Ok(Self::Uniform { replacement: false }),
                "recent" => Ok(Self::Recent),
                name => refuse("sampler", name, "\"uniform\", \"distinct\" or \"recent\""),
            };
        }
        if source.cast::<PyTuple>().is_ok_and(|tuple| tuple.len() == 3) {
            let (sampler, replacement, beta): (_, _, Bound<'_, PyAny>) = source.extract()?;
            return Ok(Self::Prioritized { sampler, replacement, beta: number("beta", &beta)? });
        }
        let (sampler, role): (_, String) = source.extract()?;
        match role.as_str() {
            "world_model" => Ok(Self::Frequency(sampler, Role::WorldModel)),
            "imagination" => Ok(Self::Frequency(sampler, Role::Imagination)),
            _ => refuse("role", &role, "\"world_model\" or \"imagination\""),
        }
    }

    pub(crate) fn draw(&self, starts: &Starts<'_>, count: usize, rng: &mut ChaCha8Rng) -> Result<Drawn, Error> {
        let slots = match self {
            Self::Uniform { replacement } => draw_uniform(starts, count, *replacement, rng)?,
            Self::Recent => draw_recent(starts, count)?,
            Self::Frequency(sampler, role) => lock(&sampler.get().core).draw(starts, *role, count, rng)?,
            Self::Prioritized { sampler, replacement, beta } => {
                let mut core = lock(&sampler.get().core);
                let (slots, weights) = core.draw(starts, count, *replacement, *beta, rng)?;
                return Ok(Drawn { slots, weights: Some(weights) });
            }
        };
        Ok(Drawn { slots, weights: None })
    }
}

impl Drawn {
    /// Fills the arrays `weights` and `indices` of a batch.
    pub(crate) fn write(&self, ring: &Ring, weights: &mut [u8], indices: &mut [u8]) {
        for (at, target) in weights.as_chunks_mut().0.iter_mut().enumerate() {
            *target = self.weights.as_ref().map_or(1.0, |weights| weights[at]).to_ne_bytes();
        }
        for (&slot, target) in self.slots.iter().zip(indices.as_chunks_mut().0) {
            *target = ring.index(slot).to_ne_bytes();
        }
    }
}
