//! `Replay`: storage, sampling and snapshots.

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError, RwLock, RwLockReadGuard},
};

use drama_core::{
    ChaCha8Rng, DType, Error, Field, Ring, Role, Saved, Schema, draw_uniform, gather, load, save, seeded,
};
use numpy::{PyArray1, PyReadonlyArray1, PyUntypedArray};
use pyo3::{
    exceptions::{PyIndexError, PyValueError},
    prelude::*,
    types::PyDict,
};

use crate::{
    arrays::{Outputs, bytes, columns, size},
    dfs::DynamicFrequency,
    error::{lock, to_python},
};

/// Replay storage of per-environment streams. Safe to use from several threads.
#[pyclass(frozen, module = "drama._native")]
pub(crate) struct Replay {
    /// As in the ring; here so that arguments are checked without a lock.
    fields: Vec<Field>,
    num_envs: usize,
    rows_per_env: usize,
    capacity: usize,
    nbytes: usize,
    // Locked in this order; a thread waiting for one never holds the interpreter.
    saved: Mutex<Option<Saved>>,
    ring: RwLock<Ring>,
    rng: Mutex<ChaCha8Rng>,
}

impl Replay {
    fn from_parts(ring: Ring, rng: ChaCha8Rng, saved: Option<Saved>) -> Self {
        Self {
            fields: ring.schema().fields().to_vec(),
            num_envs: ring.num_envs(),
            rows_per_env: ring.rows_per_env(),
            capacity: ring.capacity(),
            nbytes: ring.nbytes(),
            saved: Mutex::new(saved),
            ring: RwLock::new(ring),
            rng: Mutex::new(rng),
        }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Ring> {
        self.ring.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn add_rows(&self, py: Python<'_>, given: &Bound<'_, PyDict>, leading: &[Option<usize>]) -> PyResult<()> {
        let (rows, arrays) = columns(&self.fields, given, leading)?;
        let slices: Vec<_> =
            arrays.iter().map(|array: &Option<Bound<'_, PyUntypedArray>>| array.as_ref().map(bytes)).collect();
        py.detach(|| self.ring.write().unwrap_or_else(PoisonError::into_inner).add(rows, &slices)).map_err(to_python)
    }

    /// Draws with `draw` and gathers under one lock, so that no row added meanwhile moves the starts.
    fn sample<'py>(
        &self,
        py: Python<'py>,
        (batch_size, length): (i64, i64),
        out: Option<&Bound<'py, PyDict>>,
        draw: impl FnOnce(&Ring, &mut ChaCha8Rng, usize, usize) -> Result<Vec<usize>, Error> + Send,
    ) -> PyResult<Bound<'py, PyDict>> {
        let (batch_size, length) = (size("batch_size", batch_size)?, size("length", length)?);
        let mut outputs = Outputs::new(py, &self.fields, [batch_size, length], out)?;
        let targets = outputs.bytes();
        let starts = py.detach(|| {
            let ring = self.read();
            let starts = draw(&ring, &mut lock(&self.rng), batch_size, length)?;
            gather(&ring, &starts, length, targets)?;
            Ok(starts)
        });
        let starts: Vec<usize> = starts.map_err(to_python)?;
        let batch = outputs.into_dict(py, &self.fields)?;
        batch.set_item("weights", PyArray1::from_vec(py, vec![1.0_f32; starts.len()]))?;
        batch.set_item("indices", PyArray1::from_iter(py, starts.into_iter().map(|slot| slot as i64)))?;
        Ok(batch)
    }
}

#[pymethods]
impl Replay {
    #[new]
    #[pyo3(signature = (capacity, fields, num_envs, seed))]
    fn new(capacity: i64, fields: Vec<(String, String, Vec<i64>)>, num_envs: i64, seed: u64) -> PyResult<Self> {
        let field = |(name, dtype, shape): (String, String, Vec<i64>)| {
            let shape = shape.into_iter().map(|side| size(&format!("field {name:?}: every side"), side));
            let shape = shape.collect::<PyResult<Vec<_>>>()?;
            let dtype =
                DType::from_name(&dtype).map_err(|error| PyValueError::new_err(format!("field {name:?}: {error}")))?;
            Field::new(&name, dtype, shape).map_err(to_python)
        };
        let fields = fields.into_iter().map(field).collect::<PyResult<Vec<_>>>()?;
        let schema = Schema::new(fields).map_err(to_python)?;
        let ring = Ring::new(schema, size("capacity", capacity)?, size("num_envs", num_envs)?).map_err(to_python)?;
        Ok(Self::from_parts(ring, seeded(seed), None))
    }

    /// Adds one row to every environment: arrays `[num_envs, ...]` by field name.
    fn add(&self, py: Python<'_>, columns: &Bound<'_, PyDict>) -> PyResult<()> {
        self.add_rows(py, columns, &[Some(self.num_envs)])
    }

    /// Adds T rows to every environment: arrays `[T, num_envs, ...]` by field name.
    fn add_block(&self, py: Python<'_>, columns: &Bound<'_, PyDict>) -> PyResult<()> {
        self.add_rows(py, columns, &[None, Some(self.num_envs)])
    }

    /// Sequences from starts drawn uniformly, in the arrays of `out` where it has them.
    #[pyo3(signature = (batch_size, length, replacement, out=None))]
    fn sample_uniform<'py>(
        &self,
        py: Python<'py>,
        batch_size: i64,
        length: i64,
        replacement: bool,
        out: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        self.sample(py, (batch_size, length), out, |ring, rng, count, length| {
            draw_uniform(ring, count, length, replacement, rng)
        })
    }

    /// Sequences from starts drawn by `sampler` for `role`, "world_model" or "imagination".
    #[pyo3(signature = (batch_size, length, sampler, role, out=None))]
    fn sample_dfs<'py>(
        &self,
        py: Python<'py>,
        batch_size: i64,
        length: i64,
        sampler: &DynamicFrequency,
        role: &str,
        out: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let role = match role {
            "world_model" => Role::WorldModel,
            "imagination" => Role::Imagination,
            _ => {
                let message = format!("role must be \"world_model\" or \"imagination\", got {role:?}");
                return Err(PyValueError::new_err(message));
            }
        };
        self.sample(py, (batch_size, length), out, |ring, rng, count, length| {
            lock(&sampler.core).draw(ring, role, count, length, rng)
        })
    }

    /// Sequences from the given starts.
    #[pyo3(signature = (indices, length, out=None))]
    fn gather<'py>(
        &self,
        py: Python<'py>,
        indices: PyReadonlyArray1<'py, i64>,
        length: i64,
        out: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let length = size("length", length)?;
        let slot = |&index: &i64| {
            usize::try_from(index).map_err(|_| PyIndexError::new_err(format!("index {index} is negative")))
        };
        let starts = indices.as_array().iter().map(slot).collect::<PyResult<Vec<_>>>()?;
        let mut outputs = Outputs::new(py, &self.fields, [starts.len(), length], out)?;
        let targets = outputs.bytes();
        py.detach(|| gather(&self.read(), &starts, length, targets)).map_err(to_python)?;
        outputs.into_dict(py, &self.fields)
    }

    /// Writes what changed since the last save to the directory `path`.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        py.detach(|| {
            let mut saved = lock(&self.saved);
            let ring = self.read();
            let rng = lock(&self.rng).clone();
            *saved = Some(save(&ring, &rng, saved.as_ref(), &path)?);
            Ok(())
        })
        .map_err(to_python)
    }

    /// Reads what `save` wrote.
    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let (ring, rng, saved) = py.detach(|| load(&path)).map_err(to_python)?;
        Ok(Self::from_parts(ring, rng, Some(saved)))
    }

    fn __len__(&self, py: Python<'_>) -> usize {
        py.detach(|| self.read().len())
    }

    /// Rows that every environment has ever been given.
    #[getter]
    fn total(&self, py: Python<'_>) -> u64 {
        py.detach(|| self.read().total())
    }

    #[getter]
    fn capacity(&self) -> usize {
        self.capacity
    }

    #[getter]
    fn num_envs(&self) -> usize {
        self.num_envs
    }

    #[getter]
    fn rows_per_env(&self) -> usize {
        self.rows_per_env
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.nbytes
    }

    /// Name, dtype and row shape of every field, built-in ones included.
    #[getter]
    fn fields(&self) -> Vec<(&str, &str, Vec<usize>)> {
        self.fields.iter().map(|field| (field.name(), field.dtype().name(), field.shape().to_vec())).collect()
    }
}
