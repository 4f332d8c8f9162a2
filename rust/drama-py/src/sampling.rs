//! `Sampler`: how the starts of a batch are chosen, and the draw itself.

use drama_core::{ChaCha8Rng, Error, Ring, Role, Starts, draw_recent, draw_uniform};
use pyo3::prelude::*;

use crate::{arrays::number, dfs::DynamicFrequency, error::lock, prioritized::Prioritized};

/// What a buffer draws with. A sampler with a memory may be in several of these.
#[pyclass(frozen, module = "drama._native")]
pub(crate) struct Sampler(Kind);

enum Kind {
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

#[pymethods]
impl Sampler {
    /// All starts alike.
    #[staticmethod]
    fn uniform(replacement: bool) -> Self {
        Self(Kind::Uniform { replacement })
    }

    /// The newest starts.
    #[staticmethod]
    fn recent() -> Self {
        Self(Kind::Recent)
    }

    /// In proportion to priorities; weights with the exponent `-beta`.
    #[staticmethod]
    fn prioritized(sampler: Py<Prioritized>, replacement: bool, beta: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self(Kind::Prioritized { sampler, replacement, beta: number("beta", beta)? }))
    }

    /// World-model batches by how often starts were used.
    #[staticmethod]
    fn world_model(sampler: Py<DynamicFrequency>) -> Self {
        Self(Kind::Frequency(sampler, Role::WorldModel))
    }

    /// Starts of imagination by how often they were used.
    #[staticmethod]
    fn imagination(sampler: Py<DynamicFrequency>) -> Self {
        Self(Kind::Frequency(sampler, Role::Imagination))
    }
}

impl Sampler {
    pub(crate) fn draw(&self, starts: &Starts<'_>, count: usize, rng: &mut ChaCha8Rng) -> Result<Drawn, Error> {
        let slots = match &self.0 {
            Kind::Uniform { replacement } => draw_uniform(starts, count, *replacement, rng)?,
            Kind::Recent => draw_recent(starts, count)?,
            Kind::Frequency(sampler, role) => lock(&sampler.get().core).draw(starts, *role, count, rng)?,
            Kind::Prioritized { sampler, replacement, beta } => {
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
