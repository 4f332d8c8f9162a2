//! `Replay`: storage, sampling and snapshots.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use drama_core::{
    ChaCha8Rng, Error, Field, Live, Pool, Ring, Saved, Schema, Sequences, Starts, Steps, gather_sequences,
    gather_transitions, load_stored, save, seeded, try_collect,
};
use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::{
    exceptions::{PyIndexError, PyValueError},
    prelude::*,
    types::PyDict,
};

use crate::{
    arrays::{self, Outputs, bytes, columns, copied, number, size},
    batch::{declared, position, sequence_outputs, stacks, transition_outputs},
    error::{lock, to_python},
    fork::{detached, guarded},
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
    // Locked in this order, inside `fork`; a thread waiting for one never holds the interpreter.
    saving: Mutex<Saving>,
    ring: RwLock<Ring>,
    rng: Mutex<ChaCha8Rng>,
    /// Locked only by who holds the interpreter, and for no longer than a look.
    pool: Arc<Pool>,
}

enum Saving {
    /// Where the last save or load left each chunk.
    Idle(Option<Saved>),
    /// A save is under way in the process of this number.
    Busy(u32),
}

/// A save under way. When it is over, however it ends, the next one can begin.
struct Save<'r> {
    replay: &'r Replay,
    saved: Option<Saved>,
}

impl<'r> Save<'r> {
    fn begin(replay: &'r Replay) -> Self {
        let own = std::process::id();
        loop {
            let last = guarded(|| match &mut *lock(&replay.saving) {
                Saving::Busy(process) if *process == own => None,
                // What another process is at is not ours: this one was forked from it meanwhile.
                state => Some(std::mem::replace(state, Saving::Busy(own))),
            });
            match last {
                Some(Saving::Idle(saved)) => return Self { replay, saved },
                Some(Saving::Busy(_)) => return Self { replay, saved: None },
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

impl Drop for Save<'_> {
    fn drop(&mut self) {
        guarded(|| *lock(&self.replay.saving) = Saving::Idle(self.saved.take()));
    }
}

impl Live for Replay {
    fn look<T>(&self, look: impl FnOnce(&Ring, &ChaCha8Rng) -> T) -> T {
        guarded(|| {
            let ring = self.read();
            let rng = lock(&self.rng).clone();
            look(&ring, &rng)
        })
    }
}

/// The outputs of a batch, and apart from them those of its draw.
fn split(mut outputs: Vec<&mut [u8]>) -> (Vec<&mut [u8]>, &mut [u8], &mut [u8]) {
    let (indices, weights) = (outputs.pop().unwrap_or_default(), outputs.pop().unwrap_or_default());
    (outputs, weights, indices)
}

impl Replay {
    fn from_parts(ring: Ring, rng: ChaCha8Rng, saved: Option<Saved>) -> Self {
        Self {
            fields: ring.schema().fields().to_vec(),
            num_envs: ring.num_envs(),
            rows_per_env: ring.rows_per_env(),
            capacity: ring.capacity(),
            nbytes: ring.nbytes(),
            saving: Mutex::new(Saving::Idle(saved)),
            ring: RwLock::new(ring),
            rng: Mutex::new(rng),
            pool: Arc::default(),
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
        detached(py, || self.write().add(rows, envs, &slices)).map_err(to_python)
    }
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
        let ring = detached(py, || Ring::stored(schema, capacity, num_envs, storage.as_deref())).map_err(to_python)?;
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
        detached(py, || self.write().set_final(&envs, &slices)).map_err(to_python)
    }

    /// Forgets all rows.
    fn clear(&self, py: Python<'_>) {
        detached(py, || self.write().clear());
    }

    /// Sequences from starts drawn by `sampler`, in the arrays of `out` where it has them.
    #[pyo3(signature = (batch_size, length, sampler, within_episode=false, stack=None, out=None))]
    #[allow(clippy::too_many_arguments)] // As in Python.
    fn sample<'py>(
        &self,
        py: Python<'py>,
        batch_size: &Bound<'py, PyAny>,
        length: &Bound<'py, PyAny>,
        sampler: &Bound<'py, Sampler>,
        within_episode: bool,
        stack: Option<BTreeMap<String, Bound<'py, PyAny>>>,
        out: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let (count, length) = (size("batch_size", batch_size)?, size("length", length)?);
        let (sampler, stacks) = (sampler.get(), stacks(&self.fields, stack, self.rows_per_env)?);
        let sequences = Sequences { length, within_episode, stacks: &stacks };
        let fields = sequence_outputs(&self.fields, &sequences)?;
        let outputs = Outputs::new(py, &fields, &[count, length], out, &self.pool)?;
        let mut outputs = outputs.with_draw(py, count, &self.pool)?;
        let (targets, weights, indices) = split(outputs.bytes());
        // Under one lock, so that no row added meanwhile moves the starts.
        let drawn = detached(py, || {
            let ring = self.read();
            let kind = if within_episode { Starts::within_episodes } else { Starts::sequences };
            let starts = kind(&ring, length)?.stacked(stacks.iter().copied().max().unwrap_or(0));
            let drawn = sampler.draw(&starts, count, &mut lock(&self.rng))?;
            gather_sequences(&ring, &drawn.slots, &sequences, targets)?;
            drawn.write(&ring, weights, indices);
            Ok(())
        });
        drawn.map_err(to_python)?;
        outputs.into_dict(py)
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
        sampler: &Bound<'py, Sampler>,
        next_fields: Vec<String>,
        stack: Option<BTreeMap<String, Bound<'py, PyAny>>>,
        out: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let (count, sampler) = (size("batch_size", batch_size)?, sampler.get());
        let (stacks, next) = (stacks(&self.fields, stack, self.rows_per_env)?, self.positions(&next_fields)?);
        let steps = steps(n_step, discount, &stacks, &next)?;
        let fields = transition_outputs(&self.fields, &steps)?;
        let outputs = Outputs::new(py, &fields, &[count], out, &self.pool)?;
        let mut outputs = outputs.with_draw(py, count, &self.pool)?;
        let (targets, weights, indices) = split(outputs.bytes());
        let drawn = detached(py, || {
            let ring = self.read();
            let drawn = sampler.draw(&transitions(&ring, &steps)?, count, &mut lock(&self.rng))?;
            gather_transitions(&ring, &drawn.slots, &steps, targets)?;
            drawn.write(&ring, weights, indices);
            Ok(())
        });
        drawn.map_err(to_python)?;
        outputs.into_dict(py)
    }

    /// Transitions over up to `n_step` rows from the rows `indices`, as a batch names them.
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
        let indices = copied(&indices)?;
        let (stacks, next) = (stacks(&self.fields, stack, self.rows_per_env)?, self.positions(&next_fields)?);
        let steps = steps(n_step, discount, &stacks, &next)?;
        let fields = transition_outputs(&self.fields, &steps)?;
        let mut outputs = Outputs::new(py, &fields, &[indices.len()], out, &self.pool)?;
        let targets = outputs.bytes();
        let gathered = detached(py, || {
            let ring = self.read();
            let slots = ring.find(&indices)?;
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
            let held = detached(py, || self.read().held(env));
            let length = (held.end - held.start) as usize;
            let mut outputs = Outputs::new(py, &self.fields, &[length], None, &self.pool)?;
            if length == 0 {
                return outputs.into_dict(py);
            }
            let targets = outputs.bytes();
            let whole = detached(py, || {
                let ring = self.read();
                if ring.held(env) != held {
                    return Ok(false); // Rows were added since.
                }
                let sequences = Sequences { length, within_episode: false, stacks: &[] };
                gather_sequences(&ring, &[ring.slot(env, held.start)], &sequences, targets).map(|()| true)
            });
            if whole.map_err(to_python)? {
                return outputs.into_dict(py);
            }
        }
    }

    /// Sequences from the rows `indices`, as a batch names them.
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
        let indices = copied(&indices)?;
        let stacks = stacks(&self.fields, stack, self.rows_per_env)?;
        let sequences = Sequences { length, within_episode, stacks: &stacks };
        let fields = sequence_outputs(&self.fields, &sequences)?;
        let mut outputs = Outputs::new(py, &fields, &[indices.len(), length], out, &self.pool)?;
        let targets = outputs.bytes();
        let gathered = detached(py, || {
            let ring = self.read();
            gather_sequences(&ring, &ring.find(&indices)?, &sequences, targets)
        });
        gathered.map_err(to_python)?;
        outputs.into_dict(py)
    }

    /// What batches name the rows in `slots` by.
    fn indices_at<'py>(
        &self,
        py: Python<'py>,
        slots: PyReadonlyArray1<'py, i64>,
    ) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let slots = copied(&slots)?;
        let indices = detached(py, || {
            let ring = self.read();
            slots.iter().map(|&slot| ring.index_at(slot)).collect::<Result<Vec<_>, _>>()
        });
        Ok(PyArray1::from_vec(py, indices.map_err(to_python)?))
    }

    /// Writes what changed since the last save to the directory `path`.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        // A fork need not wait for the disk: each look at the rows is guarded by itself.
        py.detach(|| {
            let mut under_way = Save::begin(self);
            under_way.saved = Some(save(self, under_way.saved.as_ref(), &path)?);
            Ok(())
        })
        .map_err(to_python)
    }

    /// Writes all to the directory `path`, of which later saves know nothing.
    fn dump(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        py.detach(|| save(self, None, &path).map(drop)).map_err(to_python)
    }

    /// Reads what `save` wrote.
    #[staticmethod]
    #[pyo3(signature = (path, storage=None))]
    fn load(py: Python<'_>, path: PathBuf, storage: Option<PathBuf>) -> PyResult<Self> {
        let (ring, rng, saved) = detached(py, || load_stored(&path, storage.as_deref())).map_err(to_python)?;
        Ok(Self::from_parts(ring, rng, Some(saved)))
    }

    /// Reads what `dump` wrote as a buffer of its own, which does not save over what that one saved.
    #[staticmethod]
    fn restore(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let (mut ring, rng, _) = detached(py, || load_stored(&path, None)).map_err(to_python)?;
        ring.part();
        Ok(Self::from_parts(ring, rng, None))
    }

    fn __len__(&self, py: Python<'_>) -> usize {
        detached(py, || self.read().len())
    }

    /// Rows that each environment has ever been given.
    #[getter]
    fn totals<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let totals = detached(py, || try_collect(self.read().totals().iter().map(|&total| total as i64), "totals"));
        Ok(PyArray1::from_vec(py, totals.map_err(to_python)?))
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
        detached(py, || self.read().stored_nbytes())
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
