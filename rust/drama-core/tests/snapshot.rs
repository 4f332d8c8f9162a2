//! Saving and loading, undisturbed and not.
#![allow(missing_docs)]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use common::{add, add_plain, ring, sequence};
use drama_core::{DType, Error, Field, Ring, Schema, Starts, draw_uniform, load, save, seeded};

/// A directory of its own, removed in the end.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("drama-snapshot-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Rows of 64 KiB, so that a chunk holds some dozens.
fn large(capacity: usize, num_envs: usize) -> Ring {
    let field = Field::new("obs", DType::from_name("uint8").unwrap(), vec![1 << 15]).unwrap();
    Ring::new(Schema::new(vec![field]).unwrap(), capacity, num_envs).unwrap()
}

fn add_large(ring: &mut Ring, rows: usize) {
    for _ in 0..rows {
        let obs: Vec<u8> =
            (0..ring.num_envs()).flat_map(|env| vec![(ring.total() as usize + env) as u8; 1 << 15]).collect();
        let ends = vec![0; ring.num_envs()];
        ring.add(1, None, &[Some(&obs), Some(&ends), Some(&ends), None]).unwrap();
    }
}

fn first_bytes(ring: &Ring) -> Vec<u8> {
    let slots: Vec<usize> =
        (0..ring.num_envs()).flat_map(|env| ring.held(env).map(move |t| ring.slot(env, t))).collect();
    let mut obs = vec![0; slots.len() << 15];
    let mut flags = vec![vec![0; slots.len()]; 3];
    let mut outputs = vec![&mut obs[..]];
    outputs.extend(flags.iter_mut().map(|flag| &mut flag[..]));
    drama_core::gather(ring, &slots, 1, outputs).unwrap();
    obs.chunks_exact(1 << 15).map(|row| row[row.len() / 2]).collect()
}

fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

#[test]
fn a_loaded_buffer_goes_on_as_the_saved_one() {
    for rows in [0, 1, 9, 10, 23] {
        let directory = Directory::new();
        let mut ring = ring(30, 3);
        add_plain(&mut ring, rows);
        let mut rng = seeded(7);
        Starts::sequences(&ring, 1).and_then(|starts| draw_uniform(&starts, 5, true, &mut rng)).ok();
        save(&ring, &rng, None, &directory.0).unwrap();
        let (mut loaded, mut loaded_rng, _) = load(&directory.0).unwrap();
        assert_eq!(
            (loaded.schema(), loaded.capacity(), loaded.total()),
            (ring.schema(), ring.capacity(), ring.total())
        );
        for ring in [&mut ring, &mut loaded] {
            add_plain(ring, 4);
        }
        let drawn = draw_uniform(&Starts::sequences(&ring, 3).unwrap(), 50, true, &mut rng).unwrap();
        assert_eq!(drawn, draw_uniform(&Starts::sequences(&loaded, 3).unwrap(), 50, true, &mut loaded_rng).unwrap());
        for start in drawn {
            assert_eq!(sequence(&ring, start, 3), sequence(&loaded, start, 3));
        }
    }
}

#[test]
fn only_changed_chunks_are_written() {
    let (first, second) = (Directory::new(), Directory::new());
    let mut ring = large(400, 2);
    let rng = seeded(0);
    let mut saved = None;
    let mut before = BTreeMap::new();
    // Fill, go on within a chunk, go around the ring, go around all of it.
    for (rows, changed) in [(100, 4), (3, 1), (0, 0), (90, 4), (31, 2), (250, 7)] {
        add_large(&mut ring, rows);
        saved = Some(save(&ring, &rng, saved.as_ref(), &first.0).unwrap());
        let after = files(&first.0);
        let new = after.keys().filter(|name| name.starts_with("chunk") && !before.contains_key(*name)).count();
        assert_eq!(new, changed, "after {rows} rows");
        assert!(after.keys().all(|name| !name.contains("tmp")));
        before = after;
        assert_eq!(first_bytes(&load(&first.0).unwrap().0), first_bytes(&ring));
    }
    let elsewhere = save(&ring, &rng, saved.as_ref(), &second.0).unwrap();
    assert_eq!(files(&first.0).len(), files(&second.0).len());
    fs::remove_dir_all(&first.0).unwrap();
    assert_eq!(first_bytes(&load(&second.0).unwrap().0), first_bytes(&ring));
    // The files of the last save are gone: all is written from memory.
    fs::remove_dir_all(&second.0).unwrap();
    save(&ring, &rng, Some(&elsewhere), &second.0).unwrap();
    assert_eq!(first_bytes(&load(&second.0).unwrap().0), first_bytes(&ring));
}

#[test]
fn files_of_another_buffer_are_not_taken_for_ours() {
    let directory = Directory::new();
    let (mut one, mut other) = (large(40, 1), large(40, 1));
    add_large(&mut one, 40);
    add_large(&mut other, 77);
    let rng = seeded(0);
    let saved = save(&one, &rng, None, &directory.0).unwrap();
    fs::remove_dir_all(&directory.0).unwrap();
    save(&other, &rng, None, &directory.0).unwrap();
    save(&one, &rng, Some(&saved), &directory.0).unwrap();
    assert_eq!(first_bytes(&load(&directory.0).unwrap().0), first_bytes(&one));
}

#[test]
fn a_sound_chunk_of_another_save_is_refused() {
    let (first, second) = (Directory::new(), Directory::new());
    let mut ring = large(40, 1);
    for directory in [&first, &second] {
        add_large(&mut ring, 60);
        save(&ring, &seeded(0), None, &directory.0).unwrap();
    }
    let name = "chunk-000000-00000001.bin";
    fs::copy(second.0.join(name), first.0.join(name)).unwrap();
    let error = load(&first.0).err().unwrap().to_string();
    assert!(error.contains(name) && error.contains("checksum"), "{error}");
}

/// A save cut off before its manifest is in place is as if it had not begun.
#[test]
fn an_unfinished_save_leaves_the_last_one() {
    let directory = Directory::new();
    let mut ring = large(100, 1);
    add_large(&mut ring, 80);
    let rng = seeded(0);
    let saved = save(&ring, &rng, None, &directory.0).unwrap();
    let old = files(&directory.0);
    let expected = first_bytes(&ring);
    add_large(&mut ring, 90);
    save(&ring, &rng, Some(&saved), &directory.0).unwrap();
    for (name, bytes) in &old {
        fs::write(directory.0.join(name), bytes).unwrap();
    }
    fs::write(directory.0.join("chunk-000000-00000099.bin.tmp"), b"half").unwrap();
    let (loaded, rng, saved) = load(&directory.0).unwrap();
    assert_eq!(first_bytes(&loaded), expected);
    save(&loaded, &rng, Some(&saved), &directory.0).unwrap();
    assert_eq!(files(&directory.0).len(), old.len());
}

#[test]
fn every_damage_is_refused_and_the_file_named() {
    let directory = Directory::new();
    let mut ring = ring(12, 2);
    add(&mut ring, &[vec![(false, true), (true, false)]]);
    ring.set_final(&[0, 1], &[Some(&[7; 32]), None, None, None]).unwrap();
    save(&ring, &seeded(0), None, &directory.0).unwrap();
    assert_eq!(files(&directory.0).len(), 3);
    for (name, bytes) in files(&directory.0) {
        let path = directory.0.join(&name);
        let refused = |damaged: &[u8], what: &str| {
            fs::write(&path, damaged).unwrap();
            match load(&directory.0).err() {
                Some(Error::Corrupt { path, reason }) => assert!(path.ends_with(&name), "{what}: {path:?} {reason}"),
                other => panic!("{what} of {name} gave {other:?}"),
            }
        };
        for at in 0..bytes.len() {
            for bit in [0x01, 0x20, 0x80] {
                let mut damaged = bytes.clone();
                damaged[at] ^= bit;
                refused(&damaged, &format!("flip {bit} at {at}"));
            }
            refused(&bytes[..at], &format!("cut at {at}"));
        }
        refused(&[&bytes[..], b"x"].concat(), "extension");
        refused(b"", "nothing");
        fs::write(&path, &bytes).unwrap();
    }
    load(&directory.0).unwrap();
}

#[test]
fn manifests_with_a_right_checksum_and_wrong_numbers_are_refused() {
    let directory = Directory::new();
    let mut ring = ring(12, 2);
    add_plain(&mut ring, 4);
    save(&ring, &seeded(0), None, &directory.0).unwrap();
    let path = directory.0.join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    let big = serde_json::json!(u64::MAX);
    for (key, value) in [
        ("capacity", serde_json::json!(0)),
        ("capacity", big.clone()),
        ("capacity", serde_json::json!(13_000)),
        ("num_envs", big.clone()),
        ("num_envs", serde_json::json!(-1)),
        ("num_envs", serde_json::json!(3)),
        ("totals", serde_json::json!([4, u64::MAX])),
        ("totals", serde_json::json!([4])),
        ("totals", serde_json::json!([4, 5])),
        ("rows_per_chunk", serde_json::json!(0)),
        ("chunks", serde_json::json!([])),
        ("chunks", serde_json::json!([{"generation": 1, "crc32": 1, "bytes": 1}])),
        (
            "fields",
            serde_json::json!([{"name": "x", "dtype": "int64", "shape": [u64::MAX, u64::MAX], "compressed": false}]),
        ),
        ("fields", serde_json::json!([{"name": "x", "dtype": "int64", "shape": [1_u64 << 40], "compressed": false}])),
        ("fields", serde_json::json!([{"name": "x", "dtype": "object", "shape": [], "compressed": false}])),
        ("fields", serde_json::json!([{"name": "x", "dtype": "int64", "shape": [1_u64 << 55], "compressed": true}])),
        ("fields", serde_json::json!([{"name": "x", "dtype": "int64", "shape": [1 << 26], "compressed": true}])),
        ("fields", serde_json::json!([{"name": "x", "dtype": "int64", "shape": []}])),
        ("finals", serde_json::json!({})),
        ("finals", serde_json::json!(1)),
        ("rng", serde_json::json!({})),
    ] {
        let mut changed = document.clone();
        changed["body"][key] = value.clone();
        changed["crc32"] = serde_json::json!(crc32fast::hash(changed["body"].to_string().as_bytes()));
        fs::write(&path, changed.to_string()).unwrap();
        assert!(matches!(load(&directory.0), Err(Error::Corrupt { .. })), "{key} {value}");
    }
    fs::write(&path, text.replace("\"version\":2", "\"version\":3")).unwrap();
    let newer = load(&directory.0).err().unwrap().to_string();
    assert!(newer.contains("manifest.json: has version 3, this build reads up to version 2"), "{newer}");
    fs::remove_file(&path).unwrap();
    assert!(matches!(load(&directory.0), Err(Error::Io { .. })));
}

#[test]
fn a_load_while_another_saves_gives_one_of_the_saves() {
    let directory = Directory::new();
    let mut ring = large(200, 1);
    let saves = 40;
    add_large(&mut ring, 200);
    let mut saved = save(&ring, &seeded(0), None, &directory.0).unwrap();
    std::thread::scope(|scope| {
        let saver = scope.spawn(|| {
            for _ in 0..saves {
                add_large(&mut ring, 200);
                saved = save(&ring, &seeded(0), Some(&saved), &directory.0).unwrap();
            }
        });
        while !saver.is_finished() {
            let (loaded, _, _) = load(&directory.0).unwrap();
            let last = loaded.total();
            assert_eq!(last % 200, 0);
            let rows: Vec<u8> = (last - 200..last).map(|t| t as u8).collect();
            assert_eq!(first_bytes(&loaded), rows);
        }
    });
}
