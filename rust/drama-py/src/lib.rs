//! The extension module `drama._native`: parses, releases the interpreter, calls the core, converts.

mod arrays;
mod atari;
mod batch;
mod dfs;
mod error;
mod fork;
mod prioritized;
mod replay;
mod sampling;
mod share;
mod vector;

use pyo3::pymodule;

/// Native half of `drama`; use it through `drama.replay` and `drama.envs`.
#[pymodule(gil_used = true)]
mod _native {
    use pyo3::prelude::*;

    #[pymodule_export]
    #[allow(non_upper_case_globals)] // Python's name.
    const __version__: &str = env!("CARGO_PKG_VERSION");

    /// Cores that this process may use, by its affinity and by the quotas of its control groups.
    #[pyfunction]
    fn cores() -> usize {
        drama_core::cores()
    }

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::fork::register(module)
    }

    #[pymodule_export]
    use super::{
        atari::AtariStepper, dfs::DynamicFrequency, prioritized::Prioritized, replay::Replay, sampling::Sampler,
        share::EnvShare, vector::VectorBoard,
    };
}
