//! The fields of a batch.

use std::collections::BTreeMap;

use drama_core::{DType, Field, Sequences, Steps, reward};
use pyo3::{exceptions::PyValueError, prelude::*};

use crate::{arrays::size, error::to_python};

/// Position of the field that `argument` names.
pub(crate) fn position(fields: &[Field], argument: &str, name: &str) -> PyResult<usize> {
    fields.iter().position(|field| field.name() == name).ok_or_else(|| {
        let known: Vec<_> = fields.iter().map(Field::name).collect();
        PyValueError::new_err(format!("{argument}: unknown field {name:?}, expected {}", known.join(", ")))
    })
}

/// Frames per field, 0 for those that are not stacked.
pub(crate) fn stacks(
    fields: &[Field],
    given: Option<BTreeMap<String, Bound<'_, PyAny>>>,
    limit: usize,
) -> PyResult<Vec<usize>> {
    let Some(given) = given else { return Ok(Vec::new()) };
    let mut stacks = vec![0; fields.len()];
    for (name, frames) in given {
        let index = position(fields, "stack", &name)?;
        stacks[index] = size(&format!("stack of field {name:?}"), &frames)?;
        if stacks[index] == 0 || stacks[index] > limit {
            let message = format!("stack of field {name:?} must be from 1 to {limit} (the rows kept per environment)");
            return Err(PyValueError::new_err(format!("{message}, got {frames}")));
        }
    }
    Ok(stacks)
}

/// The field called `name` of a batch that holds `field`, with an axis of frames where it is stacked.
fn output(field: &Field, name: &str, frames: usize) -> PyResult<Field> {
    if frames == 0 && name == field.name() {
        return Ok(field.clone());
    }
    let frames = if frames == 0 { vec![] } else { vec![frames] };
    Field::new(name, field.dtype(), [&frames, field.shape()].concat()).map_err(to_python)
}

/// One number per row of a batch.
fn scalar(name: &str, dtype: DType) -> PyResult<Field> {
    Field::new(name, dtype, Vec::new()).map_err(to_python)
}

/// The fields of a row.
fn outputs(fields: &[Field], stacks: &[usize]) -> PyResult<Vec<Field>> {
    let frames = stacks.iter().copied().chain(std::iter::repeat(0));
    fields.iter().zip(frames).map(|(field, frames)| output(field, field.name(), frames)).collect()
}

/// The fields of a batch of sequences.
pub(crate) fn sequence_outputs(fields: &[Field], sequences: &Sequences<'_>) -> PyResult<Vec<Field>> {
    let mut outputs = outputs(fields, sequences.stacks)?;
    if sequences.within_episode {
        outputs.push(scalar("mask", DType::Bool)?);
    }
    Ok(outputs)
}

/// The fields of a batch of transitions.
pub(crate) fn transition_outputs(fields: &[Field], steps: &Steps<'_>) -> PyResult<Vec<Field>> {
    let mut outputs = outputs(fields, steps.stacks)?;
    let (reward, dtype) = reward(fields).map_err(to_python)?;
    if steps.stacks.get(reward).is_some_and(|&frames| frames > 0) {
        return Err(PyValueError::new_err("stack: rewards are summed up, not stacked"));
    }
    outputs[reward] = Field::new("reward", dtype, fields[reward].shape().to_vec()).map_err(to_python)?;
    for &index in steps.next {
        let (field, frames) = (&fields[index], steps.stacks.get(index).copied().unwrap_or(0));
        outputs.push(output(field, &format!("next_{}", field.name()), frames)?);
    }
    outputs.extend([scalar("discount", DType::Float32)?, scalar("steps", DType::Int64)?]);
    Ok(outputs)
}

/// A field as Python declares it.
pub(crate) fn declared(
    (name, dtype, shape, compressed): (String, String, Vec<Bound<'_, PyAny>>, bool),
) -> PyResult<Field> {
    let shape = shape.into_iter().map(|side| size(&format!("field {name:?}: every side"), &side));
    let shape = shape.collect::<PyResult<Vec<_>>>()?;
    let dtype = DType::from_name(&dtype).map_err(|error| PyValueError::new_err(format!("field {name:?}: {error}")))?;
    let field = Field::new(&name, dtype, shape).map_err(to_python)?;
    Ok(if compressed { field.compressed() } else { field })
}
