//! `manifest.json`: what a save consists of.

use std::{io::Read, path::Path};

use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use serde_json::{Value, json};

use super::{at, chunk::rows_per_chunk, corrupt, open};
use crate::{
    error::{Error, Result},
    ring::Ring,
    schema::{DType, Field, Schema},
};

pub(super) const NAME: &str = "manifest.json";
const FORMAT: &str = "drama-replay";
const VERSION: u64 = 2;
/// Far above what any buffer gives, far below what would hurt.
const SIZE_LIMIT: u64 = 256 << 20;
/// More rows than can ever be added; keeps row counters clear of overflow.
const TOTAL_LIMIT: u64 = 1 << 62;

/// One file of a save.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct ChunkEntry {
    pub(super) generation: u64,
    pub(super) crc32: u32,
    pub(super) bytes: u64,
}

pub(super) struct Manifest {
    schema: Schema,
    capacity: usize,
    num_envs: usize,
    totals: Vec<u64>,
    seed: [u8; 32],
    stream: u64,
    word_pos: u128,
    pub(super) rows_per_chunk: usize,
    pub(super) chunks: Vec<ChunkEntry>,
    pub(super) finals: Option<ChunkEntry>,
}

impl Manifest {
    pub(super) fn of(ring: &Ring, rng: &ChaCha8Rng, chunks: &[ChunkEntry], finals: Option<ChunkEntry>) -> Self {
        Self {
            schema: ring.schema().clone(),
            capacity: ring.capacity(),
            num_envs: ring.num_envs(),
            totals: ring.totals().to_vec(),
            seed: rng.get_seed(),
            stream: rng.get_stream(),
            word_pos: rng.get_word_pos(),
            rows_per_chunk: rows_per_chunk(ring),
            chunks: chunks.to_vec(),
            finals,
        }
    }

    pub(super) fn to_text(&self) -> String {
        let fields: Vec<Value> = self
            .schema
            .fields()
            .iter()
            .map(|field| {
                json!({
                    "name": field.name(),
                    "dtype": field.dtype().name(),
                    "shape": field.shape(),
                    "compressed": field.is_compressed(),
                })
            })
            .collect();
        let entry =
            |file: &ChunkEntry| json!({"generation": file.generation, "crc32": file.crc32, "bytes": file.bytes});
        let chunks: Vec<Value> = self.chunks.iter().map(entry).collect();
        let body = json!({
            "fields": fields,
            "capacity": self.capacity,
            "num_envs": self.num_envs,
            "totals": self.totals,
            "rng": {"seed": self.seed, "stream": self.stream, "word_pos": self.word_pos.to_string()},
            "rows_per_chunk": self.rows_per_chunk,
            "chunks": chunks,
            "finals": self.finals.as_ref().map(entry),
        });
        let crc32 = crc32fast::hash(body.to_string().as_bytes());
        json!({"format": FORMAT, "version": VERSION, "crc32": crc32, "body": body}).to_string()
    }

    pub(super) fn read(path: &Path) -> Result<Self> {
        let (mut file, size) = open(path)?;
        if size > SIZE_LIMIT {
            return corrupt(path, format!("has {size} bytes, too many for a manifest"));
        }
        let mut bytes = Vec::new();
        at(path, file.read_to_end(&mut bytes))?;
        let document: Value = match serde_json::from_slice(&bytes) {
            Ok(document) => document,
            Err(error) => return corrupt(path, format!("is not a manifest: {error}")),
        };
        if document["format"] != FORMAT {
            return corrupt(path, "is not the manifest of a replay buffer");
        }
        match document["version"].as_u64() {
            Some(VERSION) => {}
            Some(version) if version > VERSION => {
                return corrupt(path, format!("has version {version}, this build reads up to version {VERSION}"));
            }
            _ => return corrupt(path, "names no version that this build reads"),
        }
        let body = &document["body"];
        if document["crc32"] != crc32fast::hash(body.to_string().as_bytes()) || document.to_string().as_bytes() != bytes
        {
            return corrupt(path, "is corrupted: the checksum does not match");
        }
        match Self::parse(body) {
            Some(manifest) => {
                manifest.map_err(|error| Error::Corrupt { path: path.to_owned(), reason: error.to_string() })
            }
            None => corrupt(path, "lacks an entry or has one of the wrong type"),
        }
    }

    fn parse(body: &Value) -> Option<Result<Self>> {
        let size = |value: &Value| value.as_u64().and_then(|number| usize::try_from(number).ok());
        let mut fields = Vec::new();
        for field in body["fields"].as_array()? {
            let shape = field["shape"].as_array()?.iter().map(size).collect::<Option<Vec<_>>>()?;
            let name = field["name"].as_str()?;
            // The built-in field that no caller may declare.
            if name != "is_first" {
                let dtype = DType::from_name(field["dtype"].as_str()?);
                let declared = dtype.and_then(|dtype| Field::new(name, dtype, shape));
                let compressed = field["compressed"].as_bool()?;
                fields.push(declared.map(|field| if compressed { field.compressed() } else { field }));
            }
        }
        let schema = match fields.into_iter().collect::<Result<Vec<_>>>().and_then(Schema::new) {
            Ok(schema) => schema,
            Err(error) => return Some(Err(error)),
        };
        let rng = &body["rng"];
        let seed = rng["seed"].as_array()?.iter().map(|byte| u8::try_from(byte.as_u64()?).ok());
        let total = |total: &Value| total.as_u64().filter(|&total| total < TOTAL_LIMIT);
        let chunk = |chunk: &Value| {
            Some(ChunkEntry {
                generation: chunk["generation"].as_u64()?,
                crc32: u32::try_from(chunk["crc32"].as_u64()?).ok()?,
                bytes: chunk["bytes"].as_u64()?,
            })
        };
        Some(Ok(Self {
            schema,
            capacity: size(&body["capacity"])?,
            num_envs: size(&body["num_envs"])?,
            totals: body["totals"].as_array()?.iter().map(total).collect::<Option<_>>()?,
            seed: seed.collect::<Option<Vec<u8>>>()?.try_into().ok()?,
            stream: rng["stream"].as_u64()?,
            word_pos: rng["word_pos"].as_str()?.parse().ok()?,
            rows_per_chunk: size(&body["rows_per_chunk"])?,
            chunks: body["chunks"].as_array()?.iter().map(chunk).collect::<Option<_>>()?,
            finals: if body["finals"].is_null() { None } else { Some(chunk(&body["finals"])?) },
        }))
    }

    /// A ring of the size and with the row counts of the manifest, its rows still to be read.
    pub(super) fn ring(&self, path: &Path, storage: Option<&Path>) -> Result<Ring> {
        if self.totals.len() != self.num_envs {
            return corrupt(path, "has not one total for each environment");
        }
        let ring = Ring::stored(self.schema.clone(), self.capacity, self.num_envs, storage);
        let mut ring = ring.map_err(|error| match error {
            Error::Io { .. } | Error::Room { .. } => error,
            _ => Error::Corrupt { path: path.to_owned(), reason: error.to_string() },
        })?;
        ring.set_totals(&self.totals);
        Ok(ring)
    }

    pub(super) fn rng(&self) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::from_seed(self.seed);
        rng.set_stream(self.stream);
        rng.set_word_pos(self.word_pos);
        rng
    }
}
