//! Resize by area against its definition, and the colour table.
#![allow(missing_docs)]

use drama_core::{AreaResize, Colours, Screens, Slot};
use proptest::prelude::*;

/// Average over the rectangle that one target pixel covers, in f64.
fn naive(image: &[u8], (height, width): (usize, usize), (rows, columns): (usize, usize), channels: usize) -> Vec<f64> {
    let overlap = |pixel: usize, index: usize, scale: f64| {
        let (start, end) = (index as f64 * scale, (index + 1) as f64 * scale);
        (end.min(pixel as f64 + 1.0) - start.max(pixel as f64)).max(0.0)
    };
    let (tall, wide) = (height as f64 / rows as f64, width as f64 / columns as f64);
    let mut out = Vec::new();
    for row in 0..rows {
        for column in 0..columns {
            for channel in 0..channels {
                let mut sum = 0.0;
                for y in 0..height {
                    for x in 0..width {
                        let share = overlap(y, row, tall) * overlap(x, column, wide);
                        sum += share * f64::from(image[(y * width + x) * channels + channel]);
                    }
                }
                out.push(sum / (tall * wide));
            }
        }
    }
    out
}

fn sizes() -> impl Strategy<Value = ((usize, usize), (usize, usize))> {
    (1..24_usize, 1..40_usize).prop_flat_map(|source| (Just(source), (1..=source.0, 1..=source.1)))
}

proptest! {
    #[test]
    fn resize_equals_the_definition((source, target) in sizes(), seed in any::<u32>()) {
        let image: Vec<u8> =
            (0..source.0 * source.1 * 3).map(|i| ((i as u32).wrapping_mul(2_654_435_761) ^ seed) as u8).collect();
        let mut out = vec![0; target.0 * target.1 * 3];
        AreaResize::new(source, target).unwrap().apply::<3, 3>(&image, &mut out).unwrap();
        for (got, expected) in out.iter().zip(naive(&image, source, target, 3)) {
            // Half a level of rounding, and a trace of f32.
            prop_assert!((f64::from(*got) - expected).abs() < 0.501, "{got} {expected}");
        }
        if source == target {
            prop_assert_eq!(out, image);
        }
    }
}

#[test]
fn sizes_that_enlarge_are_refused() {
    for target in [(0, 5), (5, 0), (11, 5), (5, 11)] {
        assert!(AreaResize::new((10, 10), target).is_err(), "{target:?}");
    }
}

#[test]
fn colours_are_learnt_and_pooled_by_channel() {
    let mut screens = Screens::new(1, 2, (1, 2), Colours::Rgb).unwrap();
    assert!(!screens.take(Slot::Last, &[4, 6]).unwrap());
    screens.learn(&[4, 6], &[10, 200, 30, 1, 2, 3]).unwrap();
    assert!(screens.take(Slot::Last, &[4, 6]).unwrap());
    assert!(screens.take(Slot::Previous, &[6, 4]).unwrap());
    assert!(!screens.take(Slot::Previous, &[6, 8]).unwrap());
    screens.learn(&[8, 8], &[50, 0, 250, 50, 0, 250]).unwrap();
    screens.take(Slot::Previous, &[8, 8]).unwrap();
    screens.pool();
    let mut out = [0; 6];
    screens.show(&mut out).unwrap();
    assert_eq!(out, [50, 200, 250, 50, 2, 250]);
    let state = (screens.screen(Slot::Last).to_vec(), screens.screen(Slot::Previous).to_vec());
    let mut restored = Screens::new(1, 2, (1, 2), Colours::Rgb).unwrap();
    restored.set_screens(&state.0, &state.1).unwrap();
    restored.show(&mut out).unwrap();
    assert_eq!(out, [50, 200, 250, 50, 2, 250]);
    assert!(restored.set_screens(&state.0, &state.1[1..]).is_err());
}
