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
use drama_core::{DType, Error, Field, Live, Ring, Schema, Starts, draw_uniform, load, save, seeded};

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

/// Name of the file of a chunk.
fn chunk(directory: &Directory, index: usize) -> String {
    let part = format!("-{index:06}-");
    files(&directory.0).into_keys().find(|name| name.contains(&part)).unwrap()
}

#[test]
fn a_loaded_buffer_goes_on_as_the_saved_one() {
    for rows in [0, 1, 9, 10, 23] {
        let directory = Directory::new();
        let mut ring = ring(30, 3);
        add_plain(&mut ring, rows);
        let mut rng = seeded(7);
        Starts::sequences(&ring, 1).and_then(|starts| draw_uniform(&starts, 5, true, &mut rng)).ok();
        save(&(&ring, &rng), None, &directory.0).unwrap();
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
        saved = Some(save(&(&ring, &rng), saved.as_ref(), &first.0).unwrap());
        let after = files(&first.0);
        let new = after.keys().filter(|name| name.starts_with("chunk") && !before.contains_key(*name)).count();
        assert_eq!(new, changed, "after {rows} rows");
        assert!(after.keys().all(|name| !name.contains("tmp")));
        before = after;
        assert_eq!(first_bytes(&load(&first.0).unwrap().0), first_bytes(&ring));
    }
    let elsewhere = save(&(&ring, &rng), saved.as_ref(), &second.0).unwrap();
    assert_eq!(files(&first.0).len(), files(&second.0).len());
    fs::remove_dir_all(&first.0).unwrap();
    assert_eq!(first_bytes(&load(&second.0).unwrap().0), first_bytes(&ring));
    // The files of the last save are gone: all is written from memory.
    fs::remove_dir_all(&second.0).unwrap();
    save(&(&ring, &rng), Some(&elsewhere), &second.0).unwrap();
    assert_eq!(first_bytes(&load(&second.0).unwrap().0), first_bytes(&ring));
}

#[test]
fn the_directory_of_another_buffer_is_refused() {
    let directory = Directory::new();
    let (mut one, mut other) = (large(40, 1), large(40, 1));
    add_large(&mut one, 40);
    add_large(&mut other, 77);
    let rng = seeded(0);
    let saved = save(&(&one, &rng), None, &directory.0).unwrap();
    let before = files(&directory.0);
    let refused = save(&(&other, &rng), None, &directory.0).err().unwrap().to_string();
    assert!(refused.contains("manifest.json: is the save of another buffer"), "{refused}");
    assert_eq!(files(&directory.0), before);
    // What was loaded is the same buffer, and goes on in its directory.
    let (mut loaded, rng, at) = load(&directory.0).unwrap();
    add_large(&mut loaded, 3);
    save(&(&loaded, &rng), Some(&at), &directory.0).unwrap();
    assert_eq!(first_bytes(&load(&directory.0).unwrap().0), first_bytes(&loaded));
    // Its files of this name are not those of the first any more.
    save(&(&one, &rng), Some(&saved), &directory.0).unwrap();
    assert_eq!(first_bytes(&load(&directory.0).unwrap().0), first_bytes(&one));
    fs::write(directory.0.join("manifest.json"), "{}").unwrap();
    let refused = save(&(&one, &rng), None, &directory.0).err().unwrap().to_string();
    assert!(refused.contains("is not the manifest of a replay buffer; save to another"), "{refused}");
}

/// Names that look like ours, of another buffer or of nobody's.
#[test]
fn no_file_but_its_own_is_touched() {
    let directory = Directory::new();
    let mut ring = large(40, 1);
    add_large(&mut ring, 40);
    let rng = seeded(0);
    let names = ["chunk-000001-00000001.bin", "chunk-00000000000000ff-000000-00000001.bin", "manifest.json.bak"];
    for name in names {
        fs::write(directory.0.join(name), b"mine").unwrap();
        fs::write(directory.0.join(format!("{name}.tmp")), b"mine").unwrap();
    }
    let mut saved = None;
    for _ in 0..3 {
        add_large(&mut ring, 40);
        saved = Some(save(&(&ring, &rng), saved.as_ref(), &directory.0).unwrap());
    }
    let after = files(&directory.0);
    assert_eq!(after.len(), 2 * names.len() + 2, "a chunk and a manifest beside them");
    assert_eq!(after.values().filter(|bytes| *bytes == b"mine").count(), 2 * names.len());
}

#[test]
fn a_sound_chunk_of_another_save_is_refused() {
    let (first, second) = (Directory::new(), Directory::new());
    let mut ring = large(40, 1);
    for directory in [&first, &second] {
        add_large(&mut ring, 60);
        save(&(&ring, &seeded(0)), None, &directory.0).unwrap();
    }
    let name = &chunk(&first, 0);
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
    let saved = save(&(&ring, &rng), None, &directory.0).unwrap();
    let old = files(&directory.0);
    let expected = first_bytes(&ring);
    add_large(&mut ring, 90);
    save(&(&ring, &rng), Some(&saved), &directory.0).unwrap();
    for (name, bytes) in &old {
        fs::write(directory.0.join(name), bytes).unwrap();
    }
    let unfinished = chunk(&directory, 0).rsplit_once('-').unwrap().0.to_owned() + "-00000099.bin.tmp";
    fs::write(directory.0.join(unfinished), b"half").unwrap();
    let (loaded, rng, saved) = load(&directory.0).unwrap();
    assert_eq!(first_bytes(&loaded), expected);
    save(&(&loaded, &rng), Some(&saved), &directory.0).unwrap();
    assert_eq!(files(&directory.0).len(), old.len());
}

#[test]
fn every_damage_is_refused_and_the_file_named() {
    let directory = Directory::new();
    let mut ring = ring(12, 2);
    add(&mut ring, &[vec![(false, true), (true, false)]]);
    ring.set_final(&[0, 1], &[Some(&[7; 32]), None, None, None]).unwrap();
    save(&(&ring, &seeded(0)), None, &directory.0).unwrap();
    assert_eq!(files(&directory.0).len(), 2);
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
    save(&(&ring, &seeded(0)), None, &directory.0).unwrap();
    let path = directory.0.join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    let (head, body) = text.split_once("\"body\":").unwrap();
    let body: serde_json::Value = serde_json::from_str(body.strip_suffix('}').unwrap()).unwrap();
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
        ("identity", serde_json::json!(null)),
        ("identity", serde_json::json!(7)),
        ("byte_order", serde_json::json!("big")),
        ("byte_order", serde_json::json!(null)),
        ("rng", serde_json::json!({})),
    ] {
        let mut changed = body.clone();
        changed[key] = value.clone();
        let changed = changed.to_string();
        let crc32 = crc32fast::hash(changed.as_bytes());
        let head = format!("{}\"crc32\":\"{crc32:08x}\",", head.split_once("\"crc32\"").unwrap().0);
        fs::write(&path, format!("{head}\"body\":{changed}}}")).unwrap();
        if key == "identity" && value == 7 {
            // Whose files these are is in their names.
            assert!(matches!(load(&directory.0), Err(Error::Io { .. })));
            continue;
        }
        assert!(matches!(load(&directory.0), Err(Error::Corrupt { .. })), "{key} {value}");
    }
    fs::write(&path, text.replace("\"version\":3", "\"version\":4")).unwrap();
    let newer = load(&directory.0).err().unwrap().to_string();
    assert!(newer.contains("manifest.json: has version 4, this build reads version 3"), "{newer}");
    fs::write(&path, "{\"body\":{},\"crc32\":1,\"format\":\"drama-replay\",\"version\":2}").unwrap();
    let older = load(&directory.0).err().unwrap().to_string();
    assert!(older.contains("is of a version before 3, this build reads version 3"), "{older}");
    fs::remove_file(&path).unwrap();
    assert!(matches!(load(&directory.0), Err(Error::Io { .. })));
}

#[test]
fn a_load_while_another_saves_gives_one_of_the_saves() {
    let directory = Directory::new();
    let mut ring = large(200, 1);
    let saves = 40;
    add_large(&mut ring, 200);
    let mut saved = save(&(&ring, &seeded(0)), None, &directory.0).unwrap();
    std::thread::scope(|scope| {
        let saver = scope.spawn(|| {
            for _ in 0..saves {
                add_large(&mut ring, 200);
                saved = save(&(&ring, &seeded(0)), Some(&saved), &directory.0).unwrap();
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

/// Rewrites the chunk of a save of one chunk, and makes all checksums fit.
fn sign_chunk(directory: &Directory, change: impl Fn(&mut Vec<u8>)) {
    let (path, name) = (directory.0.join("manifest.json"), chunk(directory, 0));
    let mut bytes = fs::read(directory.0.join(&name)).unwrap();
    change(&mut bytes);
    let crc32 = crc32fast::hash(&bytes[16..]);
    bytes[12..16].copy_from_slice(&crc32.to_le_bytes());
    fs::write(directory.0.join(&name), &bytes).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let (head, body) = text.split_once("\"body\":").unwrap();
    let mut body: serde_json::Value = serde_json::from_str(body.strip_suffix('}').unwrap()).unwrap();
    body["chunks"][0]["crc32"] = serde_json::json!(crc32);
    body["chunks"][0]["bytes"] = serde_json::json!(bytes.len());
    let (body, start) = (body.to_string(), head.split_once("\"crc32\"").unwrap().0);
    let crc32 = crc32fast::hash(body.as_bytes());
    fs::write(&path, format!("{start}\"crc32\":\"{crc32:08x}\",\"body\":{body}}}")).unwrap();
}

#[test]
fn final_values_of_rows_that_have_none_are_refused() {
    let directory = Directory::new();
    let mut ring = ring(12, 2);
    add(&mut ring, &[vec![(false, true), (false, false)]]);
    ring.set_final(&[0], &[Some(&[7; 16]), None, None, None]).unwrap();
    add(&mut ring, &[vec![(false, false), (false, false)]]);
    save(&(&ring, &seeded(0)), None, &directory.0).unwrap();
    let sound = files(&directory.0);
    let value = |field: u64, slot: u64| [&field.to_le_bytes()[..], &slot.to_le_bytes(), &[7; 16]].concat();
    let restore = || sound.iter().for_each(|(name, bytes)| fs::write(directory.0.join(name), bytes).unwrap());
    let last = |bytes: &mut Vec<u8>, field, slot| {
        bytes.truncate(bytes.len() - 32);
        bytes.extend(value(field, slot));
    };
    // The right one, so that the others are refused for what they are.
    sign_chunk(&directory, |bytes| last(bytes, 0, 0));
    load(&directory.0).unwrap();
    // A row whose episode goes on, one that is not there, one beyond all, a flag, no field, and one value twice.
    for (field, slot) in [(0, 6), (0, 2), (0, 12), (0, u64::MAX), (1, 0), (4, 0), (u64::MAX, 0)] {
        restore();
        sign_chunk(&directory, |bytes| last(bytes, field, slot));
        assert!(matches!(load(&directory.0), Err(Error::Corrupt { .. })), "field {field}, slot {slot}");
    }
    restore();
    sign_chunk(&directory, |bytes| bytes.extend(value(0, 0)));
    assert!(matches!(load(&directory.0), Err(Error::Corrupt { .. })));
}

type Change<'a> = &'a dyn Fn(&mut Ring);

#[test]
fn flags_that_are_neither_true_nor_false_are_refused() {
    let directory = Directory::new();
    let mut ring = ring(12, 2);
    add(&mut ring, &[vec![(false, true), (false, false)]]);
    save(&(&ring, &seeded(0)), None, &directory.0).unwrap();
    // The last field is a flag.
    sign_chunk(&directory, |bytes| *bytes.last_mut().unwrap() = 7);
    assert!(matches!(load(&directory.0), Err(Error::Corrupt { .. })));
}

#[test]
fn booleans_of_every_kind_are_true_or_false() {
    let flag = |name| Field::new(name, DType::Bool, vec![20]).unwrap();
    let schema = Schema::new(vec![flag("plain"), flag("packed").compressed()]).unwrap();
    let mut ring = Ring::new(schema, 4, 1).unwrap();
    let (yes, odd) = (vec![1; 20], [vec![1; 19], vec![2]].concat());
    let given = |index: usize| (0..2).map(|at| if at == index { odd.clone() } else { yes.clone() }).collect::<Vec<_>>();
    for index in 0..2 {
        let (values, message) =
            (given(index), format!("field {:?}: got a boolean of byte 2, expected 0 or 1", ["plain", "packed"][index]));
        let columns = [Some(&values[0][..]), Some(&values[1][..]), Some(&[0][..]), Some(&[1][..]), None];
        assert_eq!(ring.add(1, None, &columns).unwrap_err().to_string(), message);
    }
    ring.add(1, None, &[Some(&yes), Some(&yes), Some(&[0]), Some(&[1]), None]).unwrap();
    assert!(ring.set_final(&[0], &[Some(&odd), None, None, None, None]).is_err());
    ring.set_final(&[0], &[Some(&yes), None, None, None, None]).unwrap();
    let directory = Directory::new();
    save(&(&ring, &seeded(0)), None, &directory.0).unwrap();
    let sound = files(&directory.0);
    load(&directory.0).unwrap();
    // Of the plain row, of the compressed one (a run of ones, of which the first byte is literal), of the final value.
    let place = |bytes: &[u8], which: usize| match which {
        0 => 32,
        1 => 32 + 20 + 4 + 1,
        _ => bytes.len() - 1,
    };
    for which in 0..3 {
        for (name, bytes) in &sound {
            fs::write(directory.0.join(name), bytes).unwrap();
        }
        sign_chunk(&directory, |bytes| {
            let at = place(bytes, which);
            assert_eq!(bytes[at], 1);
            bytes[at] = 2;
        });
        assert!(matches!(load(&directory.0), Err(Error::Corrupt { .. })), "value {which}");
    }
}

#[test]
fn saves_with_final_values_write_what_is_new() {
    let directory = Directory::new();
    let mut ring = large(400, 1);
    let (rng, mut saved, mut before) = (seeded(0), None, BTreeMap::new());
    let final_value = |ring: &mut Ring, value: u8| {
        ring.set_final(&[0], &[Some(&vec![value; 1 << 15]), None, None, None]).unwrap();
    };
    let end = |ring: &mut Ring| {
        ring.add(1, None, &[Some(&vec![1; 1 << 15]), Some(&[0]), Some(&[1]), None]).unwrap();
        final_value(ring, 2);
    };
    // Fill; add nothing, a row, and what followed a row that is saved already.
    let all = |ring: &mut Ring| (0..400).for_each(|_| end(ring));
    let steps: [(Change<'_>, usize); 4] = [(&all, 7), (&|_| {}, 0), (&end, 1), (&|ring| final_value(ring, 3), 1)];
    for (step, changed) in steps {
        step(&mut ring);
        saved = Some(save(&(&ring, &rng), saved.as_ref(), &directory.0).unwrap());
        let after = files(&directory.0);
        let new = after.keys().filter(|name| name.starts_with("chunk") && !before.contains_key(*name));
        assert_eq!(new.count(), changed);
        before = after;
    }
    load(&directory.0).unwrap();
}

/// A buffer under a lock, to which rows are added while it is saved.
struct Busy(std::sync::RwLock<Ring>, drama_core::ChaCha8Rng);

impl Live for Busy {
    fn look<T>(&self, look: impl FnOnce(&Ring, &drama_core::ChaCha8Rng) -> T) -> T {
        look(&self.0.read().unwrap(), &self.1)
    }
}

#[test]
fn rows_are_added_while_a_buffer_is_saved_and_each_save_is_of_one_instant() {
    let directory = Directory::new();
    let busy = Busy(large(200, 1).into(), seeded(0));
    add_large(&mut busy.0.write().unwrap(), 200);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                add_large(&mut busy.0.write().unwrap(), 7);
                std::thread::yield_now();
            }
        });
        let mut saved = None;
        for _ in 0..15 {
            saved = Some(save(&busy, saved.as_ref(), &directory.0).unwrap());
            let (loaded, ..) = load(&directory.0).unwrap();
            let last = loaded.total();
            let rows: Vec<u8> = (last - 200..last).map(|t| t as u8).collect();
            assert_eq!(first_bytes(&loaded), rows);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn savers_of_one_directory_leave_a_whole_save() {
    let directory = Directory::new();
    let mut ring = large(200, 1);
    add_large(&mut ring, 200);
    save(&(&ring, &seeded(0)), None, &directory.0).unwrap();
    std::thread::scope(|scope| {
        for number in 0..4 {
            let path = &directory.0;
            scope.spawn(move || {
                let (mut ring, rng, saved) = load(path).unwrap();
                let mut saved = Some(saved);
                for _ in 0..8 {
                    add_large(&mut ring, 30 + number);
                    saved = Some(save(&(&ring, &rng), saved.as_ref(), path).unwrap());
                }
            });
        }
    });
    let (loaded, ..) = load(&directory.0).unwrap();
    let last = loaded.total();
    assert_eq!(first_bytes(&loaded), (last - 200..last).map(|t| t as u8).collect::<Vec<_>>());
    assert_eq!(files(&directory.0).len(), 5, "a manifest and the four chunks of one save");
}

#[test]
fn a_small_save_of_a_huge_buffer_takes_little() {
    let directory = Directory::new();
    let mut ring = ring(1 << 26, 1);
    add_plain(&mut ring, 3);
    save(&(&ring, &seeded(0)), None, &directory.0).unwrap();
    drop(ring);
    let before = resident();
    let (loaded, ..) = load(&directory.0).unwrap();
    assert_eq!(loaded.len(), 3);
    // Other tests run beside; the rows would be 1.2 GB.
    assert!(resident().saturating_sub(before) < 256 << 20);
}

/// Bytes of memory in use, where Linux tells.
fn resident() -> usize {
    let text = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0) * 4096
}
