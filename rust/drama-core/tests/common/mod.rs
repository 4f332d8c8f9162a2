//! Helpers of the integration tests.
#![allow(dead_code, missing_docs)] // Each test file uses its own part.

use drama_core::{DType, Field, Ring, Schema, gather};

/// A ring with one field `x` of type i64 and shape [2].
pub(crate) fn ring(capacity: usize, num_envs: usize) -> Ring {
    let field = Field::new("x", DType::from_name("int64").unwrap(), vec![2]).unwrap();
    Ring::new(Schema::new(vec![field]).unwrap(), capacity, num_envs).unwrap()
}

/// Value of field `x` in row `t` of `env`.
pub(crate) fn value(env: usize, t: u64) -> i64 {
    (env as i64) << 32 | t as i64
}

/// Adds rows whose `x` is `value`; `ends[row][env]` is (terminated, truncated).
pub(crate) fn add(ring: &mut Ring, ends: &[Vec<(bool, bool)>]) {
    let (mut x, mut terminated, mut truncated) = (Vec::new(), Vec::new(), Vec::new());
    for (row, ends) in ends.iter().enumerate() {
        for (env, end) in ends.iter().enumerate() {
            x.extend_from_slice(&value(env, ring.total() + row as u64).to_le_bytes());
            x.extend_from_slice(&(-1_i64).to_le_bytes());
            terminated.push(u8::from(end.0));
            truncated.push(u8::from(end.1));
        }
    }
    ring.add(ends.len(), None, &[Some(&x), Some(&terminated), Some(&truncated), None]).unwrap();
}

/// Adds `rows` rows without an episode's end.
pub(crate) fn add_plain(ring: &mut Ring, rows: usize) {
    let ends = vec![vec![(false, false); ring.num_envs()]; rows];
    add(ring, &ends);
}

/// One sequence: the values of `x`, and the bytes of terminated, truncated and is_first.
pub(crate) fn sequence(ring: &Ring, start: usize, length: usize) -> (Vec<i64>, [Vec<u8>; 3]) {
    let (mut x, mut flags) = (vec![0; length * 16], [vec![9; length], vec![9; length], vec![9; length]]);
    let [terminated, truncated, is_first] = &mut flags;
    gather(ring, &[start], length, vec![&mut x, terminated, truncated, is_first]).unwrap();
    let values = x.chunks_exact(16).map(|row| i64::from_le_bytes(row[..8].try_into().unwrap())).collect();
    (values, flags)
}
