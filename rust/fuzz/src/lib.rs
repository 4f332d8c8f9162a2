//! What the loader does with a save that was changed: it gives back the rows that were saved, or an error.

use std::{fs, path::Path, sync::LazyLock};

use drama_core::{DType, Error, Field, Ring, Schema, gather, load, save, seeded};
use serde_json::{Value, json};

const MANIFEST: &str = "manifest.json";
/// What comes after the checksum in a manifest, and how long the checksum is.
const BODY: &str = "\",\"body\":";
const SUM: usize = 8;
/// Where a chunk keeps its checksum, and where the part under it begins.
const CRC: std::ops::Range<usize> = 12..16;
/// Numbers that are wrong in many ways.
const NUMBERS: [u64; 14] = [
    0,
    1,
    2,
    3,
    255,
    1 << 16,
    1 << 26,
    1 << 30,
    (1 << 31) - 1,
    u32::MAX as u64,
    1 << 32,
    1 << 53,
    (1 << 62) - 1,
    u64::MAX,
];
/// Texts that are names, kinds and numbers of other things, or of nothing.
const TEXTS: [&str; 16] = [
    "",
    "x",
    "y",
    "terminated",
    "is_first",
    "indices",
    "../../x",
    "/etc/passwd",
    "a\0b",
    "\u{202e}",
    "bool",
    "float64",
    "object",
    "big",
    "-1",
    "340282366920938463463374607431768211455",
];

/// Changes the save of a small buffer as `input` says and loads it. Panics where the loader is wrong.
///
/// The first byte picks the file and how: bit 0 the chunk rather than the manifest; bit 1 the rest of the input takes
/// the file's place, rather than being edits of it; bit 2 the checksums are made to fit, so that the parser behind
/// them is reached; bit 3 the edits replace whole numbers of the manifest, bit 4 whole texts or values of any kind, under
/// a checksum that fits.
pub fn load_mutated(input: &[u8]) {
    let Some((&mode, script)) = input.split_first() else { return };
    let directory = std::env::temp_dir().join(format!("drama-fuzz-{}", std::process::id()));
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    let Sound { ring, chunk, files } = &*SAVED;
    let names = [MANIFEST, chunk];
    for (name, content) in names.into_iter().zip(files) {
        fs::write(directory.join(name), content).unwrap();
    }
    let values = mode & (8 | 16) != 0;
    let target = usize::from(mode & 1 != 0 && !values);
    let sound = &files[target];
    let changed = if values {
        replaced(sound, script, mode & 16 != 0)
    } else if mode & 2 == 0 {
        edited(sound, script)
    } else {
        script.to_vec()
    };
    fs::write(directory.join(names[target]), &changed).unwrap();
    let signed = values || mode & 4 != 0 && sign(&directory, target == 1, &changed);
    match load(&directory) {
        Ok((loaded, ..)) if !signed => {
            assert_eq!(changed, *sound, "a damaged save was loaded");
            assert_eq!(rows(&loaded), rows(ring));
        }
        // Whatever was signed may differ, but must be a buffer that can be read, and booleans what they are.
        Ok((loaded, ..)) => {
            let fields = loaded.schema().fields();
            for (field, column) in fields.iter().cycle().zip(rows(&loaded)) {
                assert!(field.dtype() != DType::Bool || column.iter().all(|&byte| byte < 2), "{}", field.name());
            }
        }
        Err(Error::Corrupt { .. } | Error::Io { .. } | Error::Memory(_)) => {}
        Err(error) => panic!("a damaged save gave {error:?}"),
    }
}

/// A buffer, the name of its chunk, and the manifest and the chunk of its save.
struct Sound {
    ring: Ring,
    chunk: String,
    files: [Vec<u8>; 2],
}

static SAVED: LazyLock<Sound> = LazyLock::new(|| {
    let field = Field::new("x", DType::from_name("int16").unwrap(), vec![3]).unwrap();
    let packed = Field::new("y", DType::from_name("uint8").unwrap(), vec![40]).unwrap().compressed();
    let flag = Field::new("z", DType::from_name("bool").unwrap(), vec![30]).unwrap().compressed();
    let mut ring = Ring::new(Schema::new(vec![field, packed, flag]).unwrap(), 10, 2).unwrap();
    let x: Vec<u8> = (0..7 * 2 * 6).collect();
    // Every other row gets smaller.
    let y: Vec<u8> = (0..14 * 40).map(|at| if at / 40 % 2 == 0 { 7 } else { (at * at % 251) as u8 }).collect();
    // The newest row of the second environment is such an end.
    let ends: Vec<u8> = (0..14).map(|row| u8::from(row % 5 == 3)).collect();
    let z: Vec<u8> = (0..14 * 30).map(|at| u8::from(at % 60 < 3)).collect();
    ring.add(7, None, &[Some(&x), Some(&y), Some(&z), Some(&ends), Some(&[0; 14]), None]).unwrap();
    let directory = std::env::temp_dir().join(format!("drama-fuzz-sound-{}", std::process::id()));
    ring.set_final(&[1], &[Some(&[5; 6]), Some(&[6; 40]), Some(&[1; 30]), None, None, None]).unwrap();
    save(&(&ring, &seeded(0)), None, &directory).unwrap();
    let names = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let chunk = names.into_iter().find(|name| name.starts_with("chunk")).unwrap();
    let files = [MANIFEST, &chunk].map(|name| fs::read(directory.join(name)).unwrap());
    fs::remove_dir_all(&directory).unwrap();
    Sound { ring, chunk, files }
});

/// Four bytes an edit: two for the place, one for what to do, one for the value.
fn edited(sound: &[u8], script: &[u8]) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    for edit in script.chunks_exact(4) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % (bytes.len() + 1);
        match edit[2] % 4 {
            0 => bytes.insert(at, edit[3]),
            1 => bytes.truncate(at),
            _ if at == bytes.len() => {}
            2 => bytes[at] ^= edit[3],
            _ => drop(bytes.remove(at)),
        }
    }
    bytes
}

/// Two bytes an edit: which number of the manifest, or which value of any kind if `any`, and what takes its place.
fn replaced(sound: &[u8], script: &[u8], any: bool) -> Vec<u8> {
    fn values(value: &mut Value, any: bool) -> Vec<&mut Value> {
        let whole = match &*value {
            Value::Array(inside) => inside.is_empty() && any,
            Value::Object(_) => false,
            value => any || value.is_number(),
        };
        match value {
            _ if whole => vec![value],
            Value::Array(inside) => inside.iter_mut().flat_map(|each| values(each, any)).collect(),
            Value::Object(inside) => inside.values_mut().flat_map(|each| values(each, any)).collect(),
            _ => Vec::new(),
        }
    }
    let mut body: Value = serde_json::from_slice(body(sound).unwrap()).unwrap();
    for edit in script.chunks_exact(2) {
        let mut values = values(&mut body, any);
        let count = values.len();
        let which = usize::from(edit[1]);
        let others = [json!(null), json!(true), json!(0.5), json!(-1), json!([]), json!([[]]), json!({"name": "x"})];
        *values[usize::from(edit[0]) % count] = match which.checked_sub(128) {
            Some(which) if any && which % 2 == 0 => others[which / 2 % others.len()].clone(),
            Some(which) if any => json!(TEXTS[which / 2 % TEXTS.len()]),
            _ => json!(NUMBERS[which % NUMBERS.len()]),
        };
    }
    summed(sound, body.to_string().as_bytes()).unwrap()
}

/// The part of a manifest that is under the checksum.
fn body(manifest: &[u8]) -> Option<&[u8]> {
    let start = manifest.windows(BODY.len()).position(|window| window == BODY.as_bytes())? + BODY.len();
    manifest[start..].strip_suffix(b"}")
}

/// A manifest as `like` with another body and a checksum that fits.
fn summed(like: &[u8], new: &[u8]) -> Option<Vec<u8>> {
    let start = like.len() - body(like)?.len() - 1;
    let mut head = like[..start].to_vec();
    let place = start.checked_sub(BODY.len() + SUM)?..start - BODY.len();
    head[place].copy_from_slice(format!("{:08x}", crc32fast::hash(new)).as_bytes());
    Some([&head, new, b"}"].concat())
}

/// Makes the checksums fit what was changed; false where it has none.
fn sign(directory: &Path, is_chunk: bool, changed: &[u8]) -> bool {
    let path = directory.join(MANIFEST);
    if !is_chunk {
        let signed = body(changed).and_then(|body| summed(changed, body));
        return signed.inspect(|signed| fs::write(&path, signed).unwrap()).is_some();
    }
    if changed.len() < CRC.end {
        return false;
    }
    let crc32 = crc32fast::hash(&changed[CRC.end..]);
    let mut chunk = changed.to_vec();
    chunk[CRC].copy_from_slice(&crc32.to_le_bytes());
    fs::write(directory.join(&SAVED.chunk), &chunk).unwrap();
    let manifest = &SAVED.files[0];
    let mut body: Value = serde_json::from_slice(body(manifest).unwrap()).unwrap();
    body["chunks"] = json!([{"generation": 1, "crc32": crc32, "bytes": chunk.len()}]);
    fs::write(&path, summed(manifest, body.to_string().as_bytes()).unwrap()).unwrap();
    true
}

/// All that a ring holds, by environment and field.
fn rows(ring: &Ring) -> Vec<Vec<u8>> {
    let mut columns = Vec::new();
    for env in (0..ring.num_envs()).filter(|&env| ring.filled(env) > 0) {
        let (start, length) = (ring.slot(env, ring.held(env).start), ring.filled(env));
        let fields = ring.schema().fields();
        let mut own: Vec<Vec<u8>> = fields.iter().map(|field| vec![0; length * field.row_bytes()]).collect();
        gather(ring, &[start], length, own.iter_mut().map(|column| &mut column[..]).collect()).unwrap();
        columns.append(&mut own);
    }
    columns
}
