//! `Prioritized`: priorities of the rows and draws in proportion to them.

use std::sync::Mutex;

use drama_core::{Priorities, Prioritized as Core};
use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

use crate::{
    arrays::{copied, number},
    error::{lock, to_python},
    fork::detached,
    replay::Replay,
};

type State<'py> = (Bound<'py, PyArray1<f64>>, f64, Bound<'py, PyArray1<u64>>);

/// Priorities of proportional sampling, bound to the first buffer they are used with.
#[pyclass(frozen, module = "drama._native")]
pub(crate) struct Prioritized {
    pub(crate) core: Mutex<Core>,
}

#[pymethods]
impl Prioritized {
    #[new]
    fn new(alpha: &Bound<'_, PyAny>) -> PyResult<Self> {
        let alpha = number("alpha", alpha)?;
        Ok(Self { core: Mutex::new(Core::new(alpha).map_err(to_python)?) })
    }

    /// Sets the priorities of the rows in slots `indices`.
    fn update(
        &self,
        py: Python<'_>,
        indices: PyReadonlyArray1<'_, i64>,
        priorities: PyReadonlyArray1<'_, f64>,
    ) -> PyResult<()> {
        let (indices, priorities) = (copied(&indices)?, copied(&priorities)?);
        detached(py, || lock(&self.core).update(&indices, &priorities)).map_err(to_python)
    }

    /// The priority of every slot of `replay`.
    fn priorities<'py>(&self, py: Python<'py>, replay: &Replay) -> PyResult<Bound<'py, PyArray1<f64>>> {
        let priorities = detached(py, || {
            let ring = replay.read();
            lock(&self.core).priorities(&ring)?.try_clone()
        });
        Ok(PyArray1::from_vec(py, priorities.map_err(to_python)?.values))
    }

    /// Priorities, the largest so far, rows seen by environment.
    fn state<'py>(&self, py: Python<'py>) -> PyResult<State<'py>> {
        let priorities = detached(py, || lock(&self.core).export().try_clone());
        let Priorities { values, largest, seen } = priorities.map_err(to_python)?;
        Ok((PyArray1::from_vec(py, values), largest, PyArray1::from_vec(py, seen)))
    }

    /// Takes over what `state` gave.
    fn set_state(
        &self,
        py: Python<'_>,
        values: PyReadonlyArray1<'_, f64>,
        largest: f64,
        seen: PyReadonlyArray1<'_, u64>,
    ) -> PyResult<()> {
        let (values, seen) = (copied(&values)?, copied(&seen)?);
        detached(py, || lock(&self.core).import(Priorities { values, largest, seen })).map_err(to_python)
    }
}
