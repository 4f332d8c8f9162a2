//! `DynamicFrequency`: counters and weights of frequency-based sampling.

use std::sync::Mutex;

use drama_core::{Counters, DynamicFrequency as Core};
use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

use crate::{
    arrays::{copied, number, size},
    error::{lock, to_python},
    fork::detached,
    replay::Replay,
};

type Counts<'py> = Bound<'py, PyArray1<u32>>;
type State<'py> = (Counts<'py>, Counts<'py>, Bound<'py, PyArray1<u64>>, usize);

/// Counters of dynamic frequency-based sampling, bound to the first buffer they are used with.
#[pyclass(frozen, module = "drama._native")]
pub(crate) struct DynamicFrequency {
    pub(crate) core: Mutex<Core>,
}

#[pymethods]
impl DynamicFrequency {
    #[new]
    fn new(
        temperature: &Bound<'_, PyAny>,
        ratio: &Bound<'_, PyAny>,
        alpha: &Bound<'_, PyAny>,
        beta: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let (temperature, ratio) = (number("temperature", temperature)?, number("ratio", ratio)?);
        let (alpha, beta) = (number("alpha", alpha)?, number("beta", beta)?);
        let core = Core::new(temperature, ratio, alpha, beta).map_err(to_python)?;
        Ok(Self { core: Mutex::new(core) })
    }

    /// The counts n and b of every slot of `replay`.
    fn counts<'py>(&self, py: Python<'py>, replay: &Replay) -> PyResult<(Counts<'py>, Counts<'py>)> {
        let counters = detached(py, || {
            let ring = replay.read();
            lock(&self.core).counters(&ring)?.try_clone()
        });
        let counters = counters.map_err(to_python)?;
        Ok((PyArray1::from_vec(py, counters.n), PyArray1::from_vec(py, counters.b)))
    }

    /// Counts n and b, rows seen by environment, number of environments.
    fn state<'py>(&self, py: Python<'py>) -> PyResult<State<'py>> {
        let counters = detached(py, || lock(&self.core).export().try_clone());
        let Counters { n, b, seen, num_envs } = counters.map_err(to_python)?;
        Ok((PyArray1::from_vec(py, n), PyArray1::from_vec(py, b), PyArray1::from_vec(py, seen), num_envs))
    }

    /// Takes over what `state` gave.
    fn set_state(
        &self,
        py: Python<'_>,
        n: PyReadonlyArray1<'_, u32>,
        b: PyReadonlyArray1<'_, u32>,
        seen: PyReadonlyArray1<'_, u64>,
        num_envs: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (n, b, seen) = (copied(&n)?, copied(&b)?, copied(&seen)?);
        let counters = Counters { n, b, seen, num_envs: size("num_envs", num_envs)? };
        detached(py, || lock(&self.core).import(counters)).map_err(to_python)
    }
}
