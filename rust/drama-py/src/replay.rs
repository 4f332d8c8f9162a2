//! `Replay`: storage, sampling and snapshots.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use drama_core::{
    ChaCha8Rng, Error, Field, Layout, Ring, Saved, Schema, Starts, Steps, gather_sequences, gather_transitions,
    load_stored, save, seeded,
};
use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::{
    exceptions::{PyIndexError, PyValueError},
    prelude::*,
    types::PyDict,
};

use crate::{
    arrays::{self, Outputs, bytes, columns, number, size},
    batch::{declared, position, sequence_outputs, stacks, transition_outputs},
    error::{lock, to_python},
    sampling::Sampler,
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

    fn write(&self) -> RwLockWriteGuard<'_, Ring> {
        self.ring.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Places of the fields wanted of what follows a transition.
    fn positions(&self, next_fields: &[String]) -> PyResult<Vec<usize>> {
        next_fields.iter().map(|name| position(&self.fields, "next_fields", name)).collect()
    }

    fn add_rows(
        &self,
        py: Python<'_>,
        given: &Bound<'_, PyDict>,
        leading: &[Option<usize>],
        envs: Option<&[usize]>,
    ) -> PyResult<()> {
        let (rows, arrays) = columns(&self.fields, given, leading, false)?;
        let slices: Vec<_> = arrays.iter().map(|array| array.as_ref().map(bytes)).collect();
        py.detach(|| self.write().add(rows, envs, &slices)).map_err(to_python)
    }
}

/// Slots given as Python indices.
fn slots(indices: &PyReadonlyArray1<'_, i64>) -> PyResult<Vec<usize>> {
    let slot =
        |&index: &i64| usize::try_from(index).map_err(|_| PyIndexError::new_err(format!("index {index} is negative")));
    indices.as_array().iter().map(slot).collect()
}

/// What a transition consists of, with the numbers as Python gives them.
fn steps<'a>(
    n_step: &Bound<'_, PyAny>,
    discount: &Bound<'_, PyAny>,
    stacks: &'a [usize],
    next: &'a [usize],
) -> PyResult<Steps<'a>> {
    let (steps, discount) = (size("n_step", n_step)?, number("discount", discount)?);
    if !(0.0..=1.0).contains(&discount) {
        return Err(PyValueError::new_err(format!("discount must be from 0 to 1, got {discount}")));
    }
    Ok(Steps { steps, discount, stacks, next })
}

/// The starts of such transitions.
fn transitions<'r>(ring: &'r Ring, steps: &'r Steps<'_>) -> Result<Starts<'r>, Error> {
    let starts = Starts::transitions(ring, steps.steps, steps.next)?;
    Ok(starts.stacked(steps.stacks.iter().copied().max().unwrap_or(0)))
}

#[pymethods]
impl Replay {
    #[new]
    #[pyo3(signature = (capacity, fields, num_envs, seed, storage=None))]
    fn new(
        py: Python<'_>,
        capacity: &Bound<'_, PyAny>,
        fields: Vec<(String, String, Vec<Bound<'_, PyAny>>, bool)>,
        num_envs: &Bound<'_, PyAny>,
        seed: &Bound<'_, PyAny>,
        storage: Option<PathBuf>,
    ) -> PyResult<Self> {
        let fields = fields.into_iter().map(declared).collect::<PyResult<Vec<_>>>()?;
        let schema = Schema::new(fields).map_err(to_python)?;
        let (capacity, num_envs) = (size("capacity", capacity)?, size("num_envs", num_envs)?);
        let seed = arrays::seed(seed)?;
        let ring = py.detach(|| Ring::stored(schema, capacity, num_envs, storage.as_deref())).map_err(to_python)?;
        Ok(Self::from_parts(ring, seeded(seed), None))
    }

    /// Adds one row to every environment or to those in `envs`: arrays `[envs, ...]` by field name.
    #[pyo3(signature = (columns, envs=None))]
    fn add(&self, py: Python<'_>, columns: &Bound<'_, PyDict>, envs: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let envs = envs.map(|envs| arrays::envs(envs, self.num_envs)).transpose()?;
        let count = envs.as_ref().map_or(self.num_envs, Vec::len);
        self.add_rows(py, columns, &[Some(count)], envs.as_deref())
    }

    /// Adds T rows to every environment: arrays `[T, num_envs, ...]` by field name.
    fn add_block(&self, py: Python<'_>, columns: &Bound<'_, PyDict>) -> PyResult<()> {
        self.add_rows(py, columns, &[None, Some(self.num_envs)], None)
    }

    /// Keeps what follows the last row of each of `envs`: arrays `[envs, ...]` by field name.
    fn set_final(&self, py: Python<'_>, envs: &Bound<'_, PyAny>, columns: &Bound<'_, PyDict>) -> PyResult<()> {
        let envs = arrays::envs(envs, self.num_envs)?;
        let (_, arrays) = arrays::columns(&self.fields, columns, &[Some(envs.len())], true)?;
        let slices: Vec<_> = arrays.iter().map(|array| array.as_ref().map(bytes)).collect();
        py.detach(|| self.write().set_final(&envs, &slices)).map_err(to_python)
    }

    /// Forgets all rows.
    fn clear(&self, py: Python<'_>) {
        py.detach(|| {
            let mut saved = lock(&self.saved);
            self.write().clear();
            *saved = None;
        });
    }

    /// Sequences from starts drawn by `sampler`, in the arrays of `out` where it has them.
    #[pyo3(signature = (batch_size, length, sampler, within_episode=false, stack=None, out=None))]
    #[allow(clippy::too_many_arguments)] // As in Python.
    fn sample<'py>(
        &self,
        py: Python<'py>,
        batch_size: &Bound<'py, PyAny>,
        length: &Bound<'py, PyAny>,
        sampler: &Bound<'py, PyAny>,
        within_episode: bool,
        stack: Option<BTreeMap<String, Bound<'py, PyAny>>>,
        out: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let (count, length) = (size("batch_size", batch_size)?, size("length", length)?);
        let (sampler, stacks) = (Sampler::new(sampler)?, stacks(&self.fields, stack, self.rows_per_env)?);
        let layout = Layout { length, within_episode, stacks: &stacks };
        let fields = sequence_outputs(&self.fields, &layout)?;
        let mut outputs = Outputs::new(py, &fields, &[count, length], out)?;
        let targets = outputs.bytes();
        // Under one lock, so that no row added meanwhile moves the starts.
        let drawn = py.detach(|| {
            let ring = self.read();
            let kind = if within_episode { Starts::within_episodes } else { Starts::sequences };
            let starts = kind(&ring, length)?.stacked(stacks.iter().copied().max().unwrap_or(0));
            let drawn = sampler.draw(&starts, count, &mut lock(&self.rng))?;
            gather_sequences(&ring, &drawn.slots, &layout, targets)?;
            Ok(drawn)
        });
        drawn.map_err(to_python)?.put(py, outputs.into_dict(py)?)
    }

    /// Transitions over up to `n_step` rows from starts drawn by `sampler`.
    #[pyo3(signature = (batch_size, n_step, discount, sampler, next_fields, stack=None, out=None))]
    #[allow(clippy::too_many_arguments)] // As in Python.
    fn sample_transitions<'py>(
        &self,
        py: Python<'py>,
        batch_size: &Bound<'py, PyAny>,
        n_step: &Bound<'py, PyAny>,
        discount: &Bound<'py, PyAny>,
        sampler: &Bound<'py, PyAny>,
        next_fields: Vec<String>,
        stack: Option<BTreeMap<String, Bound<'py, PyAny>>>,
        out: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let (count, sampler) = (size("batch_size", batch_size)?, Sampler::new(sampler)?);
        let (stacks, next) = (stacks(&self.fields, stack, self.rows_per_env)?, self.positions(&next_fields)?);
        let steps = steps(n_step, discount, &stacks, &next)?;
        let fields = transition_outputs(&self.fields, &steps)?;
        let mut outputs = Outputs::new(py, &fields, &[count], out)?;
        let targets = outputs.bytes();
        let drawn = py.detach(|| {
            let ring = self.read();
            let drawn = sampler.draw(&transitions(&ring, &steps)?, count, &mut lock(&self.rng))?;
            gather_transitions(&ring, &drawn.slots, &steps, targets)?;
            Ok(drawn)
        });
        drawn.map_err(to_python)?.put(py, outputs.into_dict(py)?)
    }

    /// Transitions over up to `n_step` rows from the given starts.
    #[pyo3(signature = (indices, n_step, discount, next_fields, stack=None, out=None))]
    #[allow(clippy::too_many_arguments)] // As in Python.
    fn gather_transitions<'py>(
        &self,
        py: Python<'py>,
        indices: PyReadonlyArray1<'py, i64>,
        n_step: &Bound<'py, PyAny>,
        discount: &Bound<'py, PyAny>,
        next_fields: Vec<String>,
        stack: Option<BTreeMap<String, Bound<'py, PyAny>>>,
        out: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let slots = slots(&indices)?;
        let (stacks, next) = (stacks(&self.fields, stack, self.rows_per_env)?, self.positions(&next_fields)?);
        let steps = steps(n_step, discount, &stacks, &next)?;
        let fields = transition_outputs(&self.fields, &steps)?;
        let mut outputs = Outputs::new(py, &fields, &[slots.len()], out)?;
        let targets = outputs.bytes();
        let gathered = py.detach(|| {
            let ring = self.read();
            transitions(&ring, &steps)?.check_slots(&slots)?;
            gather_transitions(&ring, &slots, &steps, targets)
        });
        gathered.map_err(to_python)?;
        outputs.into_dict(py)
    }

    /// The rows that an environment holds, oldest first.
    fn rows<'py>(&self, py: Python<'py>, env: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyDict>> {
        let env = size("env", env)?;
        if env >= self.num_envs {
            let last = self.num_envs - 1;
            return Err(PyIndexError::new_err(format!("env: got {env}, expected an index from 0 to {last}")));
        }
        loop {
            let held = py.detach(|| self.read().held(env));
            let length = (held.end - held.start) as usize;
            let mut outputs = Outputs::new(py, &self.fields, &[length], None)?;
            if length == 0 {
                return outputs.into_dict(py);
            }
            let targets = outputs.bytes();
            let whole = py.detach(|| {
                let ring = self.read();
                if ring.held(env) != held {
                    return Ok(false); // Rows were added since.
                }
                let layout = Layout { length, within_episode: false, stacks: &[] };
                gather_sequences(&ring, &[ring.slot(env, held.start)], &layout, targets).map(|()| true)
            });
            if whole.map_err(to_python)? {
                return outputs.into_dict(py);
            }
        }
    }

    /// Sequences from the given starts.
    #[pyo3(signature = (indices, length, within_episode=false, stack=None, out=None))]
    fn gather<'py>(
        &self,
        py: Python<'py>,
        indices: PyReadonlyArray1<'py, i64>,
        length: &Bound<'py, PyAny>,
        within_episode: bool,
        stack: Option<BTreeMap<String, Bound<'py, PyAny>>>,
        out: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let length = size("length", length)?;
        let starts = slots(&indices)?;
        let stacks = stacks(&self.fields, stack, self.rows_per_env)?;
        let layout = Layout { length, within_episode, stacks: &stacks };
        let fields = sequence_outputs(&self.fields, &layout)?;
        let mut outputs = Outputs::new(py, &fields, &[starts.len(), length], out)?;
        let targets = outputs.bytes();
        py.detach(|| gather_sequences(&self.read(), &starts, &layout, targets)).map_err(to_python)?;
        outputs.into_dict(py)
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

    /// Writes all to the directory `path`, of which later saves know nothing.
    fn dump(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        py.detach(|| {
            let ring = self.read();
            let rng = lock(&self.rng).clone();
            save(&ring, &rng, None, &path).map(drop)
        })
        .map_err(to_python)
    }

    /// Reads what `save` wrote.
    #[staticmethod]
    #[pyo3(signature = (path, storage=None))]
    fn load(py: Python<'_>, path: PathBuf, storage: Option<PathBuf>) -> PyResult<Self> {
        let (ring, rng, saved) = py.detach(|| load_stored(&path, storage.as_deref())).map_err(to_python)?;
        Ok(Self::from_parts(ring, rng, Some(saved)))
    }

    fn __len__(&self, py: Python<'_>) -> usize {
        py.detach(|| self.read().len())
    }

    /// Rows that each environment has ever been given.
    #[getter]
    fn totals<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        let totals = py.detach(|| self.read().totals().to_vec());
        PyArray1::from_iter(py, totals.into_iter().map(|total| total as i64))
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

    #[getter]
    fn stored_nbytes(&self, py: Python<'_>) -> usize {
        py.detach(|| self.read().stored_nbytes())
    }

    /// Name, dtype, row shape and whether it is compressed of every field, built-in ones included.
    #[getter]
    fn fields(&self) -> Vec<(&str, &str, Vec<usize>, bool)> {
        let fields = self.fields.iter();
        fields
            .map(|field| (field.name(), field.dtype().name(), field.shape().to_vec(), field.is_compressed()))
            .collect()
    }
}
