//! `manifest.json`: what a save consists of.

use std::{io::Read, path::Path};

use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use serde_json::{Value, json};

use super::{
    at,
    chunk::{self, ChunkEntry},
    corrupt, open,
    plan::{Plan, rows_per_chunk},
};
use crate::{
    error::{Error, Result},
    ring::{self, Ring},
    schema::{DType, Field, Schema},
};

pub(super) const NAME: &str = "manifest.json";
const VERSION: u64 = 3;
/// What comes before and after the version, and after the checksum of the bytes of the body.
const PREFIX: &str = "{\"format\":\"drama-replay\",\"version\":";
const CRC: &str = ",\"crc32\":\"";
const BODY: &str = "\",\"body\":";
/// Far above what any buffer gives, far below what would hurt once it is parsed.
const SIZE_LIMIT: u64 = 64 << 20;
/// More rows than can ever be added; keeps row counters clear of overflow.
const TOTAL_LIMIT: u64 = 1 << 62;
/// Rows lie in the files as in memory.
const BYTE_ORDER: &str = if cfg!(target_endian = "big") { "big" } else { "little" };

pub(super) struct Manifest {
    pub(super) identity: u64,
    schema: Schema,
    capacity: usize,
    num_envs: usize,
    totals: Vec<u64>,
    seed: [u8; 32],
    stream: u64,
    word_pos: u128,
    rows_per_chunk: usize,
    pub(super) chunks: Vec<ChunkEntry>,
}

impl Manifest {
    pub(super) fn of(ring: &Ring, rng: &ChaCha8Rng, chunks: Vec<ChunkEntry>) -> Self {
        Self {
            identity: ring.identity(),
            schema: ring.schema().clone(),
            capacity: ring.capacity(),
            num_envs: ring.num_envs(),
            totals: ring.totals().to_vec(),
            seed: rng.get_seed(),
            stream: rng.get_stream(),
            word_pos: rng.get_word_pos(),
            rows_per_chunk: ring.rows_per_chunk,
            chunks,
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
            |entry: &ChunkEntry| json!({"generation": entry.generation, "crc32": entry.crc32, "bytes": entry.bytes});
        let body = json!({
            "identity": self.identity,
            "byte_order": BYTE_ORDER,
            "fields": fields,
            "capacity": self.capacity,
            "num_envs": self.num_envs,
            "totals": self.totals,
            "rng": {"seed": self.seed, "stream": self.stream, "word_pos": self.word_pos.to_string()},
            "rows_per_chunk": self.rows_per_chunk,
            "chunks": self.chunks.iter().map(entry).collect::<Vec<_>>(),
        });
        let body = body.to_string();
        head(body.as_bytes()) + &body + "}"
    }

    pub(super) fn read(path: &Path) -> Result<Self> {
        let (file, size) = open(path)?;
        if size > SIZE_LIMIT {
            return corrupt(path, format!("has {size} bytes, too many for a manifest"));
        }
        let mut bytes = Vec::new();
        at(path, file.take(SIZE_LIMIT).read_to_end(&mut bytes))?;
        let body = match summed(&bytes) {
            Ok(body) => body,
            Err(reason) => return corrupt(path, reason),
        };
        // Whoever made up the sum made this up, too.
        let body: Value = match serde_json::from_slice(body) {
            Ok(body) => body,
            Err(error) => return corrupt(path, format!("is not a manifest: {error}")),
        };
        match body["byte_order"].as_str() {
            Some(BYTE_ORDER) => {}
            Some(order) => {
                return corrupt(
                    path,
                    format!("was saved by a {order}-endian machine, this one is {BYTE_ORDER}-endian"),
                );
            }
            None => return corrupt(path, "names no byte order"),
        }
        match Self::parse(&body) {
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
            identity: body["identity"].as_u64()?,
            schema,
            capacity: size(&body["capacity"])?,
            num_envs: size(&body["num_envs"])?,
            totals: body["totals"].as_array()?.iter().map(total).collect::<Option<_>>()?,
            seed: seed.collect::<Option<Vec<u8>>>()?.try_into().ok()?,
            stream: rng["stream"].as_u64()?,
            word_pos: rng["word_pos"].as_str()?.parse().ok()?,
            rows_per_chunk: size(&body["rows_per_chunk"])?,
            chunks: body["chunks"].as_array()?.iter().map(chunk).collect::<Option<_>>()?,
        }))
    }

    /// The chunks that the manifest tells of, each of whose files is there with a size that it can have. Nothing of the
    /// sizes told is allocated for that.
    fn plan(&self, path: &Path) -> Result<Plan<'_>> {
        if self.totals.len() != self.num_envs {
            return corrupt(path, "has not one total for each environment");
        }
        let rows_per_env = ring::rows_per_env(self.capacity, self.num_envs)
            .map_err(|error| Error::Corrupt { path: path.to_owned(), reason: error.to_string() })?;
        let rows_per_chunk = rows_per_chunk(&self.schema, self.num_envs, rows_per_env);
        let plan = Plan { schema: &self.schema, rows_per_env, rows_per_chunk, totals: &self.totals };
        if self.rows_per_chunk != rows_per_chunk || self.chunks.len() != plan.chunk_count() {
            return corrupt(path, "the chunks do not fit the fields and the capacity");
        }
        Ok(plan)
    }

    /// The buffer that the manifest, read from `path`, and the files in `directory` that it names make up.
    pub(super) fn load(&self, directory: &Path, path: &Path, storage: Option<&Path>) -> Result<Ring> {
        let plan = self.plan(path)?;
        let file =
            |index: usize, entry: &ChunkEntry| directory.join(chunk::name(self.identity, index, entry.generation));
        for (index, entry) in self.chunks.iter().enumerate() {
            chunk::find(plan, index, entry, &file(index, entry))?;
        }
        let ring = Ring::stored(self.schema.clone(), self.capacity, self.num_envs, storage);
        let mut ring = ring.map_err(|error| match error {
            Error::Io { .. } | Error::Room { .. } | Error::Memory(_) => error,
            _ => Error::Corrupt { path: path.to_owned(), reason: error.to_string() },
        })?;
        ring.restore(self.identity, &self.totals);
        for (index, entry) in self.chunks.iter().enumerate() {
            chunk::read(&mut ring, index, entry, &file(index, entry))?;
        }
        // Only now that the rows after them are there.
        if ring.finals.within(0..ring.slots()).any(|(_, slot, _)| ring.goes_on(slot)) {
            return corrupt(path, "keeps what followed an episode that goes on");
        }
        Ok(ring)
    }

    pub(super) fn rng(&self) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::from_seed(self.seed);
        rng.set_stream(self.stream);
        rng.set_word_pos(self.word_pos);
        rng
    }
}

/// All that comes before a body.
fn head(body: &[u8]) -> String {
    format!("{PREFIX}{VERSION}{CRC}{:08x}{BODY}", crc32fast::hash(body))
}

/// The body of a manifest, of which every byte is as it was written; otherwise what is wrong.
fn summed(bytes: &[u8]) -> Result<&[u8], String> {
    let Some(rest) = bytes.strip_prefix(PREFIX.as_bytes()) else {
        // Versions 1 and 2 had theirs in the end.
        let old = bytes.ends_with(b"\"format\":\"drama-replay\",\"version\":2}")
            || bytes.ends_with(b"\"format\":\"drama-replay\",\"version\":1}");
        return Err(if old {
            format!("is of a version before {VERSION}, this build reads version {VERSION}")
        } else {
            "is not the manifest of a replay buffer".into()
        });
    };
    let version: String =
        rest.iter().map_while(|byte| byte.is_ascii_digit().then_some(*byte as char)).take(20).collect();
    if version != VERSION.to_string() {
        return Err(format!("has version {version}, this build reads version {VERSION}"));
    }
    let body = rest.get(version.len() + CRC.len() + 8 + BODY.len()..).and_then(|body| body.strip_suffix(b"}"));
    match body {
        Some(body) if bytes.starts_with(head(body).as_bytes()) => Ok(body),
        _ => Err("is corrupted: the checksum does not match".into()),
    }
}
