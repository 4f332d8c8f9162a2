//! What the loader does with a save that was changed: it gives back the rows that were saved, or an error.

use std::{fs, path::Path, sync::LazyLock};

use drama_core::{DType, Error, Field, Ring, Schema, gather, load, save, seeded};
use serde_json::{Value, json};

const MANIFEST: &str = "manifest.json";
const CHUNK: &str = "chunk-000000-00000001.bin";
/// Where a chunk keeps its checksum, and where the part under it begins.
const CRC: std::ops::Range<usize> = 12..16;

/// Changes the save of a small buffer as `input` says and loads it. Panics where the loader is wrong.
///
/// The first byte picks the file and how: bit 0 the chunk rather than the manifest; bit 1 the rest of the input takes
/// the file's place, rather than being edits of it; bit 2 the checksums are made to fit, so that the parser behind
/// them is reached.
pub fn load_mutated(input: &[u8]) {
    let Some((&mode, script)) = input.split_first() else { return };
    let directory = std::env::temp_dir().join(format!("drama-fuzz-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let (ring, files) = &*SAVED;
    for (name, content) in [MANIFEST, CHUNK].into_iter().zip(files) {
        put(&directory.join(name), content);
    }
    let target = usize::from(mode & 1);
    let sound = &files[target];
    let changed = if mode & 2 == 0 { edited(sound, script) } else { script.to_vec() };
    put(&directory.join([MANIFEST, CHUNK][target]), &changed);
    let signed = mode & 4 != 0 && sign(&directory, target == 1, &changed);
    match load(&directory) {
        Ok((loaded, ..)) if !signed => {
            assert_eq!(changed, *sound, "a damaged save was loaded");
            assert_eq!(rows(&loaded), rows(ring));
        }
        // Whatever was signed may differ, but must be a buffer that can be read.
        Ok((loaded, ..)) => drop(rows(&loaded)),
        Err(Error::Corrupt { .. } | Error::Io { .. }) => {}
        Err(error) => panic!("a damaged save gave {error:?}"),
    }
    let _ = fs::remove_dir_all(&directory);
}

/// A buffer, and the manifest and the chunk of its save.
static SAVED: LazyLock<(Ring, [Vec<u8>; 2])> = LazyLock::new(|| {
    let field = Field::new("x", DType::from_name("int16").unwrap(), vec![3]).unwrap();
    let packed = Field::new("y", DType::from_name("uint8").unwrap(), vec![40]).unwrap().compressed();
    let mut ring = Ring::new(Schema::new(vec![field, packed]).unwrap(), 10, 2).unwrap();
    let x: Vec<u8> = (0..7 * 2 * 6).collect();
    // Every other row gets smaller.
    let y: Vec<u8> = (0..14 * 40).map(|at| if at / 40 % 2 == 0 { 7 } else { (at * at % 251) as u8 }).collect();
    let ends: Vec<u8> = (0..14).map(|row| u8::from(row % 5 == 4)).collect();
    ring.add(7, None, &[Some(&x), Some(&y), Some(&ends), Some(&[0; 14]), None]).unwrap();
    let directory = std::env::temp_dir().join(format!("drama-fuzz-sound-{}", std::process::id()));
    save(&ring, &seeded(0), None, &directory).unwrap();
    let files = [MANIFEST, CHUNK].map(|name| fs::read(directory.join(name)).unwrap());
    fs::remove_dir_all(&directory).unwrap();
    (ring, files)
});

/// Writes a new file: some file systems wait for the disk where one is written over.
fn put(path: &Path, content: &[u8]) {
    let _ = fs::remove_file(path);
    fs::write(path, content).unwrap();
}

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

/// Makes the checksums fit what was changed; false where it has none.
fn sign(directory: &Path, is_chunk: bool, changed: &[u8]) -> bool {
    let path = directory.join(MANIFEST);
    let Ok(mut document) = serde_json::from_slice::<Value>(&fs::read(&path).unwrap()) else { return false };
    if is_chunk {
        if changed.len() < CRC.end {
            return false;
        }
        let crc32 = crc32fast::hash(&changed[CRC.end..]);
        let mut chunk = changed.to_vec();
        chunk[CRC].copy_from_slice(&crc32.to_le_bytes());
        put(&directory.join(CHUNK), &chunk);
        document["body"]["chunks"] = json!([{"generation": 1, "crc32": crc32, "bytes": chunk.len()}]);
    }
    if !document["body"].is_object() {
        return false;
    }
    document["crc32"] = json!(crc32fast::hash(document["body"].to_string().as_bytes()));
    put(&path, document.to_string().as_bytes());
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
