//! NumPy arrays as bytes, and the checks on the way.

use std::sync::Arc;

use drama_core::{DType, Field, Lease, Pool, try_collect};
use numpy::{
    Element, PyArray1, PyArrayDescr, PyArrayDescrMethods, PyArrayMethods, PyReadonlyArray1, PyUntypedArray,
    PyUntypedArrayMethods,
    ndarray::ArrayView1,
    npyffi::{_PyArray_GET_ITEM_DATA, NPY_ARRAY_WRITEABLE, NpyTypes, PY_ARRAY_API, get_type_object, npy_intp},
};
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    intern,
    prelude::*,
    types::{PyDict, PyString},
};

use crate::error::to_python;

/// A size given as a Python integer.
pub(crate) fn size(name: &str, value: &Bound<'_, PyAny>) -> PyResult<usize> {
    natural(name, integer(name, value, "63")?)
}

pub(crate) fn natural(name: &str, value: i64) -> PyResult<usize> {
    usize::try_from(value).map_err(|_| PyValueError::new_err(format!("{name} must not be negative, got {value}")))
}

/// A seed given as a Python integer.
pub(crate) fn seed(value: &Bound<'_, PyAny>) -> PyResult<u64> {
    integer("seed", value, "64")
}

fn integer<'py, T: FromPyObjectOwned<'py>>(name: &str, value: &Bound<'py, PyAny>, bits: &str) -> PyResult<T> {
    value.extract().map_err(|_| {
        if value.hasattr("__index__").unwrap_or(false) {
            PyValueError::new_err(format!("{name} must be from 0 to 2**{bits} - 1, got {value}"))
        } else {
            PyTypeError::new_err(format!("{name} must be an integer, got {value:?}"))
        }
    })
}

/// A Python number.
pub(crate) fn number(name: &str, value: &Bound<'_, PyAny>) -> PyResult<f64> {
    value.extract().map_err(|_| PyTypeError::new_err(format!("{name} must be a number, got {value:?}")))
}

/// A copy of the elements of an array.
pub(crate) fn copied<T: Element + Copy>(array: &PyReadonlyArray1<'_, T>) -> PyResult<Vec<T>> {
    try_collect(array.as_array().iter().copied(), "a copy of an array").map_err(to_python)
}

/// The arrays of one `add`, in schema order; `partial` allows to leave fields out. `leading` is the shape before the
/// row's own; its sides that are `None` take their length from the first array. Gives that length, or 1.
pub(crate) fn columns<'py>(
    fields: &[Field],
    given: &Bound<'py, PyDict>,
    leading: &[Option<usize>],
    partial: bool,
) -> PyResult<(usize, Vec<Option<Bound<'py, PyUntypedArray>>>)> {
    for key in given.keys() {
        let name: String = key.extract()?;
        if !fields.iter().any(|field| field.name() == name) {
            let known: Vec<_> = fields.iter().map(Field::name).collect();
            let (hint, known) = (hint(&name, &known), known.join(", "));
            return Err(PyValueError::new_err(format!("unknown field {name:?}, expected {known}{hint}")));
        }
    }
    let mut leading = leading.to_vec();
    let mut columns = Vec::with_capacity(fields.len());
    for field in fields {
        let Some(value) = given.get_item(field.name())? else {
            if partial || field.name() == "is_first" {
                columns.push(None);
                continue;
            }
            return Err(PyValueError::new_err(format!("field {:?} is missing", field.name())));
        };
        columns.push(Some(input(field, &value, &mut leading)?));
    }
    let rows = if leading.len() > 1 { leading[0].unwrap_or(0) } else { 1 };
    Ok((rows, columns))
}

/// The numbers of environments in `value`.
pub(crate) fn envs(value: &Bound<'_, PyAny>, num_envs: usize) -> PyResult<Vec<usize>> {
    let field = Field::new("envs", DType::Int64, Vec::new()).map_err(to_python)?;
    let array = column(&field, value, &mut [None]).or_else(|_| {
        let py = value.py();
        let indices = casting(py)?.getattr(intern!(py, "as_indices"))?.call1(("envs", value, "K"))?;
        column(&field, &indices, &mut [None])
    })?;
    let number = |bytes: &[u8]| {
        let env = bytes.try_into().map_or(-1, i64::from_ne_bytes);
        usize::try_from(env)
            .map_err(|_| PyValueError::new_err(format!("envs: got {env}, expected indices from 0 to {}", num_envs - 1)))
    };
    bytes(&array).chunks_exact(8).map(number).collect()
}

/// What to give in place of a name that is usual elsewhere.
fn hint(name: &str, known: &[&str]) -> String {
    let ours = match name {
        "done" | "dones" | "terminal" | "terminals" => {
            return "; an episode ends by `terminated`, where nothing is to come, or `truncated`, where it was cut off"
                .into();
        }
        "next_obs" | "next_observation" | "next_observations" | "next_state" | "final_obs" => {
            return "; what follows a row is read from the next one, and after an episode's last row it is what \
                    `set_final` is given; `StepWriter` sees to both"
                .into();
        }
        "observation" | "observations" | "state" | "states" => "obs",
        "act" | "actions" => "action",
        "rew" | "rewards" => "reward",
        "terminateds" | "termination" | "terminations" => "terminated",
        "truncateds" | "truncation" | "truncations" | "timeout" | "timeouts" => "truncated",
        "first" | "is_start" | "episode_start" | "episode_starts" => "is_first",
        _ => return String::new(),
    };
    if known.contains(&ours) { format!("; `{ours}` is what it is called here") } else { String::new() }
}

/// What is given for a field, cast where that loses nothing.
fn input<'py>(
    field: &Field,
    value: &Bound<'py, PyAny>,
    leading: &mut [Option<usize>],
) -> PyResult<Bound<'py, PyUntypedArray>> {
    if let Ok(array) = column(field, value, leading) {
        return Ok(array);
    }
    let py = value.py();
    let cast = casting(py)?.getattr(intern!(py, "as_column"))?;
    let given = (field.name(), field.dtype().name(), field.shape().len(), leading.to_vec(), value);
    column(field, &cast.call1(given)?, leading)
}

/// The module that casts what is no array as it has to be.
fn casting(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    py.import(intern!(py, "drama.replay.casting"))
}

/// Whether an array has a mask, which its bytes do not tell.
fn is_masked(array: &Bound<'_, PyUntypedArray>) -> PyResult<bool> {
    if array.is_exact_instance_of::<PyUntypedArray>() {
        return Ok(false);
    }
    let py = array.py();
    array.is_instance(&py.import(intern!(py, "numpy.ma"))?.getattr(intern!(py, "MaskedArray"))?)
}

fn column<'py>(
    field: &Field,
    value: &Bound<'py, PyAny>,
    leading: &mut [Option<usize>],
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let refuse = |what: &str, got: String, expected: String| {
        let name = field.name();
        Err(PyValueError::new_err(format!("field {name:?}: got {what} {got}, expected {expected}")))
    };
    let Ok(array) = value.cast::<PyUntypedArray>() else {
        return refuse("type", value.get_type().name()?.to_string(), "a NumPy array".into());
    };
    if is_masked(array)? {
        return refuse("type", value.get_type().name()?.to_string(), "an array without a mask".into());
    }
    let dtype = array.dtype();
    // Not by NumPy's own comparison, which needs a second object: of some types there are two alike.
    let native = dtype.is_native_byteorder().unwrap_or(true);
    if !native || dtype.kind() != kind(field.dtype()) || dtype.itemsize() != field.dtype().itemsize() {
        return refuse("dtype", dtype.to_string(), field.dtype().name().into());
    }
    let shape = array.shape();
    let matches = shape.len() == leading.len() + field.shape().len()
        && leading.iter().zip(shape).all(|(side, got)| side.is_none_or(|side| side == *got))
        && shape[leading.len()..] == *field.shape();
    if !matches {
        let sides = leading.iter().map(|side| side.map_or("T".into(), |side| side.to_string()));
        let sides: Vec<String> = sides.chain(field.shape().iter().map(usize::to_string)).collect();
        return refuse("shape", format!("{shape:?}"), format!("[{}]", sides.join(", ")));
    }
    if !array.is_c_contiguous() {
        return refuse("an array that is", "not C-contiguous".into(), "a C-contiguous one".into());
    }
    for (side, got) in leading.iter_mut().zip(shape) {
        *side = Some(*got);
    }
    Ok(array.clone())
}

/// NumPy's letter for the kind of number.
fn kind(dtype: DType) -> u8 {
    match dtype {
        DType::Bool => b'b',
        DType::Uint8 | DType::Uint16 | DType::Uint32 | DType::Uint64 => b'u',
        DType::Int8 | DType::Int16 | DType::Int32 | DType::Int64 => b'i',
        DType::Float16 | DType::Float32 | DType::Float64 => b'f',
    }
}

/// Number of bytes of a contiguous array.
fn nbytes(array: &Bound<'_, PyUntypedArray>) -> usize {
    array.len() * array.dtype().itemsize()
}

/// The bytes of a C-contiguous array.
pub(crate) fn bytes<'a>(array: &'a Bound<'_, PyUntypedArray>) -> &'a [u8] {
    if array.is_empty() {
        return &[];
    }
    // SAFETY: `array` is C-contiguous, so its data spans this many bytes, and is kept alive by the borrow. As for
    // every NumPy function, a thread that writes to it meanwhile gets mixed data, which is plain bytes here.
    unsafe { std::slice::from_raw_parts(data(array), nbytes(array)) }
}

/// Where the data of an array begins.
fn data(array: &Bound<'_, PyUntypedArray>) -> *mut u8 {
    // SAFETY: the array is alive.
    unsafe { (*_PyArray_GET_ITEM_DATA(array.as_array_ptr())).data.cast() }
}

/// What an array made here stands on, and every view of it, tensor or capsule: dropped once nobody has any of them.
#[pyclass(frozen, module = "drama._native")]
struct Memory(#[allow(dead_code)] Lease);

impl Memory {
    /// The memory as an array of bytes, which is writable: NumPy asks that of what an array stands on before it lets
    /// somebody who made the array read-only make it writable again.
    fn array(py: Python<'_>, lease: Lease, bytes: usize) -> PyResult<Bound<'_, PyUntypedArray>> {
        let pointer: *const u8 = lease.pointer();
        let memory = Bound::new(py, Self(lease))?.into_any();
        // SAFETY: the memory has this many bytes, any of which are a `u8`, and stays for as long as the array holds on
        // to `memory`.
        let array = unsafe {
            let view = ArrayView1::from_shape_ptr(bytes, pointer);
            PyArray1::borrow_from_array(&view, memory)
        };
        Ok(array.as_untyped().clone())
    }
}

/// Size from which an array's memory is used again; below it, NumPy's own way is as fast.
const POOL_FROM: usize = 64 << 10;

/// A new array of a field, its content left to chance.
fn empty<'py>(
    py: Python<'py>,
    field: &Field,
    shape: &[usize],
    bytes: usize,
    pool: &Arc<Pool>,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let lease = || pool.take(bytes, &format!("field {:?} of a batch", field.name())).map_err(to_python);
    let lease = if bytes >= POOL_FROM { Some(lease()?) } else { None };
    let memory = lease.map(|lease| Memory::array(py, lease, bytes)).transpose()?;
    let data = memory.as_ref().map_or(std::ptr::null_mut(), data);
    let mut sides = shape.iter().map(|&side| npy_intp::try_from(side)).collect::<Result<Vec<_>, _>>()?;
    // SAFETY: a new array with as many sides as are told; what it takes over is ours: the type, and the memory, which
    // is on a cache line, large enough and stays for as long as the array holds on to `memory`.
    unsafe {
        let array = PY_ARRAY_API.PyArray_NewFromDescr(
            py,
            get_type_object(py, NpyTypes::PyArray_Type),
            descriptor(py, field.dtype())?.into_dtype_ptr(),
            sides.len() as i32,
            sides.as_mut_ptr(),
            std::ptr::null_mut(),
            data.cast(),
            if data.is_null() { 0 } else { NPY_ARRAY_WRITEABLE },
            std::ptr::null_mut(),
        );
        let array = Bound::from_owned_ptr_or_err(py, array)?;
        if let Some(memory) = memory
            && PY_ARRAY_API.PyArray_SetBaseObject(py, array.as_ptr().cast(), memory.into_ptr()) < 0
        {
            return Err(PyErr::fetch(py));
        }
        Ok(array.cast_into_unchecked())
    }
}

/// NumPy's object for a type.
fn descriptor(py: Python<'_>, dtype: DType) -> PyResult<Bound<'_, PyArrayDescr>> {
    Ok(match dtype {
        DType::Bool => numpy::dtype::<bool>(py),
        DType::Uint8 => numpy::dtype::<u8>(py),
        DType::Int8 => numpy::dtype::<i8>(py),
        DType::Uint16 => numpy::dtype::<u16>(py),
        DType::Int16 => numpy::dtype::<i16>(py),
        DType::Uint32 => numpy::dtype::<u32>(py),
        DType::Int32 => numpy::dtype::<i32>(py),
        DType::Uint64 => numpy::dtype::<u64>(py),
        DType::Int64 => numpy::dtype::<i64>(py),
        DType::Float16 => PyArrayDescr::new(py, intern!(py, "float16"))?,
        DType::Float32 => numpy::dtype::<f32>(py),
        DType::Float64 => numpy::dtype::<f64>(py),
    })
}

/// Arrays that a batch is gathered into, `[leading..., ...]` for each field. No two share memory.
pub(crate) struct Outputs<'py>(Vec<(Bound<'py, PyString>, Bound<'py, PyUntypedArray>)>);

/// Where an output's array comes from.
enum Part<'py> {
    Given(Bound<'py, PyUntypedArray>),
    New { shape: Vec<usize>, bytes: usize },
}

impl<'py> Part<'py> {
    /// The array in `out`, or what one of this field takes.
    fn new(
        field: &Field,
        name: &Bound<'py, PyString>,
        leading: &[usize],
        out: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Self> {
        if let Some(given) = out.map(|out| out.get_item(name)).transpose()?.flatten() {
            let mut sides: Vec<_> = leading.iter().copied().map(Some).collect();
            let array = column(field, &given, &mut sides)?;
            // SAFETY: the array is alive.
            if unsafe { (*_PyArray_GET_ITEM_DATA(array.as_array_ptr())).flags } & NPY_ARRAY_WRITEABLE == 0 {
                return Err(PyValueError::new_err(format!("field {:?}: the array is read-only", field.name())));
            }
            return Ok(Self::Given(array));
        }
        let shape = [leading, field.shape()].concat();
        let bytes = shape.iter().try_fold(field.dtype().itemsize(), |bytes, side| bytes.checked_mul(*side));
        if let Some(bytes) = bytes.filter(|&bytes| isize::try_from(bytes).is_ok()) {
            return Ok(Self::New { shape, bytes });
        }
        let name = field.name();
        Err(PyValueError::new_err(format!("field {name:?}: a batch {shape:?} is beyond any memory")))
    }

    fn new_bytes(&self) -> usize {
        if let Self::New { bytes, .. } = self { *bytes } else { 0 }
    }
}

impl<'py> Outputs<'py> {
    /// The arrays in `out`, and new ones, with memory of `pool`, for the fields that it lacks.
    pub(crate) fn new(
        py: Python<'py>,
        fields: &[Field],
        leading: &[usize],
        out: Option<&Bound<'py, PyDict>>,
        pool: &Arc<Pool>,
    ) -> PyResult<Self> {
        if let Some(name) = fields.iter().enumerate().find_map(|(at, field)| {
            fields[..at].iter().any(|other| other.name() == field.name()).then_some(field.name())
        }) {
            return Err(PyValueError::new_err(format!("the batch would have two entries {name:?}")));
        }
        let part = |field: &Field| {
            let name = PyString::new(py, field.name());
            Part::new(field, &name, leading, out).map(|part| (name, part))
        };
        let parts = fields.iter().map(part).collect::<PyResult<Vec<_>>>()?;
        pool.begin(parts.iter().fold(0, |bytes, (_, part)| bytes.saturating_add(part.new_bytes())));
        let arrays = fields.iter().zip(parts).map(|(field, (name, part))| match part {
            Part::Given(array) => Ok((name, array)),
            Part::New { shape, bytes } => Ok((name, empty(py, field, &shape, bytes, pool)?)),
        });
        let arrays = arrays.collect::<PyResult<Vec<_>>>()?;
        let mut spans: Vec<_> = arrays.iter().map(|(_, array)| bytes(array).as_ptr_range()).collect();
        spans.sort_unstable_by_key(|span| span.start);
        if spans.windows(2).any(|pair| pair[0].end > pair[1].start) {
            return Err(PyValueError::new_err("out: two fields share memory"));
        }
        Ok(Self(arrays))
    }

    /// Adds what tells of a draw: new arrays `weights` float32 and `indices` int64, both `[count]`.
    pub(crate) fn with_draw(mut self, py: Python<'py>, count: usize, pool: &Arc<Pool>) -> PyResult<Self> {
        for (name, dtype) in [("weights", DType::Float32), ("indices", DType::Int64)] {
            let field = Field::new(name, dtype, Vec::new()).map_err(to_python)?;
            let Part::New { shape, bytes } = Part::new(&field, &PyString::intern(py, name), &[count], None)? else {
                continue;
            };
            self.0.push((PyString::intern(py, name), empty(py, &field, &shape, bytes, pool)?));
        }
        Ok(self)
    }

    /// The memory of the arrays.
    pub(crate) fn bytes(&mut self) -> Vec<&mut [u8]> {
        let slice = |(_, array): &(_, Bound<'py, PyUntypedArray>)| {
            if array.is_empty() {
                return &mut [][..];
            }
            // SAFETY: `new` saw to it that the arrays are contiguous, writable and apart, any byte is a valid `u8`,
            // and the borrow of `self` keeps them alive. A thread that uses an array given as `out` gets mixed data.
            unsafe { std::slice::from_raw_parts_mut(data(array), nbytes(array)) }
        };
        self.0.iter().map(slice).collect()
    }

    /// Hands the arrays over by field name.
    pub(crate) fn into_dict(self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        for (name, array) in self.0 {
            dict.set_item(name, array)?;
        }
        Ok(dict)
    }
}
