//! Which fields a row has, and how many bytes each takes.

use std::sync::Arc;

use crate::error::{Error, Result};

/// Fields that every buffer has, last in the schema and in this order.
const BUILT_IN: [&str; 3] = ["terminated", "truncated", "is_first"];
/// Names that a batch uses for itself, or `add` for an argument.
const RESERVED: [&str; 4] = ["is_first", "indices", "weights", "envs"];

/// Element type of a field, named as NumPy names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The names say it.
pub enum DType {
    Bool,
    Uint8,
    Int8,
    Uint16,
    Int16,
    Uint32,
    Int32,
    Uint64,
    Int64,
    Float16,
    Float32,
    Float64,
}

impl DType {
    const ALL: [DType; 12] = [
        Self::Bool,
        Self::Uint8,
        Self::Int8,
        Self::Uint16,
        Self::Int16,
        Self::Uint32,
        Self::Int32,
        Self::Uint64,
        Self::Int64,
        Self::Float16,
        Self::Float32,
        Self::Float64,
    ];

    /// The type with this NumPy name.
    pub fn from_name(name: &str) -> Result<Self> {
        match Self::ALL.iter().find(|dtype| dtype.name() == name) {
            Some(dtype) => Ok(*dtype),
            None => Error::value(format!(
                "dtype {name} is not supported, expected {}",
                Self::ALL.map(Self::name).join(", ")
            )),
        }
    }

    /// NumPy's name of the type.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::Uint8 => "uint8",
            Self::Int8 => "int8",
            Self::Uint16 => "uint16",
            Self::Int16 => "int16",
            Self::Uint32 => "uint32",
            Self::Int32 => "int32",
            Self::Uint64 => "uint64",
            Self::Int64 => "int64",
            Self::Float16 => "float16",
            Self::Float32 => "float32",
            Self::Float64 => "float64",
        }
    }

    /// Bytes of one element.
    pub fn itemsize(self) -> usize {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => 1,
            Self::Uint16 | Self::Int16 | Self::Float16 => 2,
            Self::Uint32 | Self::Int32 | Self::Float32 => 4,
            Self::Uint64 | Self::Int64 | Self::Float64 => 8,
        }
    }
}

/// One named field of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Shared, as the fields of every batch are copies of these.
    name: Arc<str>,
    dtype: DType,
    shape: Vec<usize>,
    row_bytes: usize,
    compressed: bool,
}

impl Field {
    /// A field of `shape` elements of `dtype` per row.
    pub fn new(name: &str, dtype: DType, shape: Vec<usize>) -> Result<Self> {
        let bytes = shape.iter().try_fold(dtype.itemsize(), |bytes, &side| bytes.checked_mul(side));
        match bytes {
            Some(row_bytes) if row_bytes > 0 && isize::try_from(row_bytes).is_ok() => {
                Ok(Self { name: name.into(), dtype, shape, row_bytes, compressed: false })
            }
            Some(0) => Error::value(format!("field {name:?} has shape {shape:?}, every side must be at least 1")),
            _ => Error::value(format!("field {name:?} has shape {shape:?}, which does not fit the address space")),
        }
    }

    /// The same field, its rows kept compressed.
    #[must_use]
    pub fn compressed(self) -> Self {
        Self { compressed: true, ..self }
    }

    /// Whether rows are kept compressed.
    pub fn is_compressed(&self) -> bool {
        self.compressed
    }

    /// Name of the field.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Shape of one row.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Whether `bytes` can be elements of the field: those of a boolean are 0 or 1.
    pub(crate) fn holds(&self, bytes: &[u8]) -> bool {
        // All of them, without a branch for each.
        self.dtype != DType::Bool || bytes.iter().fold(0, |all, byte| all | byte) <= 1
    }
}

/// The ordered fields of a row: the caller's, then `terminated`, `truncated`, `is_first`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    fields: Vec<Field>,
    row_bytes: usize,
}

impl Schema {
    /// Adds the built-in fields to the caller's and checks names and sizes.
    pub fn new(declared: Vec<Field>) -> Result<Self> {
        let mut fields: Vec<Field> = Vec::with_capacity(declared.len() + BUILT_IN.len());
        for field in declared {
            if field.name.is_empty() {
                return Error::value("a field has an empty name");
            }
            if RESERVED.contains(&&*field.name) {
                return Error::value(format!("field name {:?} is reserved", field.name));
            }
            if BUILT_IN.contains(&&*field.name) {
                if field.dtype != DType::Bool || !field.shape.is_empty() {
                    return Error::value(format!(
                        "field {:?} is built in with dtype bool and shape [], got {} {:?}",
                        field.name,
                        field.dtype.name(),
                        field.shape
                    ));
                }
                if field.compressed {
                    return Error::value(format!("field {:?} is built in and cannot be compressed", field.name));
                }
                continue;
            }
            if fields.iter().any(|other| other.name == field.name) {
                return Error::value(format!("field {:?} is declared twice", field.name));
            }
            fields.push(field);
        }
        for name in BUILT_IN {
            fields.push(Field::new(name, DType::Bool, Vec::new())?);
        }
        let total = fields.iter().try_fold(0_usize, |sum, field| sum.checked_add(field.row_bytes));
        match total {
            Some(row_bytes) => Ok(Self { fields, row_bytes }),
            None => Error::value("a row of all fields does not fit the address space"),
        }
    }

    /// All fields in order.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// Bytes of one row over all fields.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Position of `terminated`; `truncated` and `is_first` follow it.
    pub(crate) fn terminated(&self) -> usize {
        self.fields.len() - BUILT_IN.len()
    }

    /// Position of `truncated`.
    pub(crate) fn truncated(&self) -> usize {
        self.terminated() + 1
    }

    /// Position of `is_first`, the last field.
    pub fn is_first(&self) -> usize {
        self.terminated() + 2
    }
}
