//! Resize by area against its definition, the colour table, stacks, sticky actions.
#![allow(missing_docs)]

use drama_core::{AreaResize, Colours, Moment, Screens, Source, Stack, Sticky};
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
        AreaResize::new(source, target).unwrap().apply::<3, 3>(&image, &vec![u8::MAX; source.0], &mut out);
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
    assert!(!screens.take(Moment::Last, &[4, 6]).unwrap());
    screens.learn(&[4, 6], &[10, 200, 30, 1, 2, 3]).unwrap();
    assert!(screens.take(Moment::Last, &[4, 6]).unwrap());
    screens.compose(Source::Last);
    assert_eq!(screens.frame(), [10, 200, 30, 1, 2, 3]);
    assert!(screens.take(Moment::Previous, &[6, 4]).unwrap());
    assert!(!screens.take(Moment::Previous, &[6, 8]).unwrap());
    screens.learn(&[8, 8], &[50, 0, 250, 50, 0, 250]).unwrap();
    assert!(screens.take(Moment::Previous, &[8, 8]).unwrap());
    screens.compose(Source::Both);
    assert_eq!(screens.frame(), [50, 200, 250, 50, 2, 250]);
    let mut restored = Screens::new(1, 2, (1, 2), Colours::Rgb).unwrap();
    restored.set_state(screens.state()).unwrap();
    assert_eq!(restored.frame(), screens.frame());
    assert!(restored.set_state(&screens.state()[1..]).is_err());
}

/// What `Screens` shows, from the whole screens each time.
struct Model {
    palette: Vec<[u8; 3]>,
    indices: [Vec<u8>; 2],
    shown: Vec<u8>,
}

impl Model {
    fn colours(&self, moment: Moment) -> Vec<u8> {
        self.indices[moment as usize].iter().flat_map(|&index| self.palette[usize::from(index)]).collect()
    }

    fn compose(&mut self, source: Source) {
        let (last, previous) = (self.colours(Moment::Last), self.colours(Moment::Previous));
        let brighter = |a: &[u8], b: &[u8]| a.iter().zip(b).map(|(a, b)| *a.max(b)).collect();
        self.shown = match source {
            Source::Last => last,
            Source::Both => brighter(&last, &previous),
            Source::ShownAndPrevious => brighter(&self.shown, &previous),
        };
    }
}

const SCREEN: (usize, usize) = (13, 19);

/// Edits of a screen: a rectangle of one colour, which leaves some rows and makes others alike.
fn edits() -> impl Strategy<Value = Vec<(usize, usize, usize, usize, u8)>> {
    proptest::collection::vec((0..SCREEN.0, 0..SCREEN.1, 0..5_usize, 0..12_usize, 0..12_u8), 0..3)
}

fn sources() -> impl Strategy<Value = Source> {
    prop_oneof![4 => Just(Source::Both), 1 => Just(Source::Last), 1 => Just(Source::ShownAndPrevious)]
}

proptest! {
    /// Only what has changed is redone; no sequence of screens may show that.
    #[test]
    fn frames_equal_those_made_afresh(
        steps in proptest::collection::vec((edits(), edits(), sources(), any::<bool>()), 1..12),
        target in (1..=SCREEN.0, 1..=SCREEN.1),
    ) {
        let palette = (0..12_u8).map(|index| [index * 20, 255 - index * 11, index.wrapping_mul(77)]).collect();
        let blank = || vec![0; SCREEN.0 * SCREEN.1];
        let mut model = Model { palette, indices: [blank(), blank()], shown: vec![0; SCREEN.0 * SCREEN.1 * 3] };
        let mut screens = Screens::new(SCREEN.0, SCREEN.1, target, Colours::Rgb).unwrap();
        let mut resize = AreaResize::new(SCREEN, target).unwrap();
        for (previous, last, source, restore) in steps {
            for (moment, edits) in [(Moment::Previous, previous), (Moment::Last, last)] {
                if moment == Moment::Last && source == Source::ShownAndPrevious {
                    continue;
                }
                let indices = &mut model.indices[moment as usize];
                for (top, left, height, width, colour) in edits {
                    for row in indices.chunks_exact_mut(SCREEN.1).skip(top).take(height) {
                        row.iter_mut().skip(left).take(width).for_each(|pixel| *pixel = colour);
                    }
                }
                let indices = indices.clone();
                if !screens.take(moment, &indices).unwrap() {
                    screens.learn(&indices, &model.colours(moment)).unwrap();
                    prop_assert!(screens.take(moment, &indices).unwrap());
                }
            }
            screens.compose(source);
            model.compose(source);
            let mut expected = vec![0; target.0 * target.1 * 3];
            resize.apply::<3, 3>(&model.shown, &[u8::MAX; SCREEN.0], &mut expected);
            prop_assert_eq!(screens.frame(), &expected[..]);
            if restore {
                let state = screens.state().to_vec();
                screens.set_state(&state).unwrap();
                prop_assert_eq!(screens.frame(), &expected[..]);
            }
        }
    }

    #[test]
    fn a_stack_holds_the_newest_frames(depth in 1..5_usize, pushes in 0..9_u8, restore in 0..9_u8) {
        let mut stack = Stack::new(depth, 2).unwrap();
        let mut out = vec![9; 2 * depth];
        let mut expected = vec![100; depth];
        stack.fill(&[100, 100]);
        for frame in 0..pushes {
            stack.push(&[frame, frame]);
            expected.remove(0);
            expected.push(frame);
            stack.write(&mut out);
            let doubled: Vec<u8> = expected.iter().flat_map(|&frame| [frame, frame]).collect();
            prop_assert_eq!(&out, &doubled);
            if frame == restore {
                stack = Stack::new(depth, 2).unwrap();
                stack.read(&out).unwrap();
            }
        }
        prop_assert!(stack.read(&out[1..]).is_err());
    }
}

#[test]
fn a_stack_of_nothing_is_refused() {
    assert!(Stack::new(0, 5).is_err());
    assert!(Stack::new(usize::MAX, 5).is_err());
}

#[test]
fn sticky_actions_repeat_as_the_generator_says() {
    let first = |probability: f64| {
        let mut sticky = Sticky::new(probability).unwrap();
        sticky.seed(5489);
        sticky.choose(7)
    };
    // A 32-bit Mersenne Twister with its usual seed begins with 3499211612, which is 0.81472 of 2 to the 32.
    assert_eq!((first(0.8147), first(0.8148)), (7, 0));

    let mut sticky = Sticky::new(0.75).unwrap();
    let chosen: Vec<i64> = (1..=5000).map(|action| sticky.choose(action)).collect();
    let new = chosen.iter().zip(1..).filter(|&(&got, wanted)| got == wanted).count();
    assert!((1150..1350).contains(&new), "{new}");
    let (words, next, action) = sticky.state();
    let mut restored = Sticky::new(0.75).unwrap();
    restored.set_state(words, next, action).unwrap();
    for wanted in 0..2000 {
        assert_eq!(restored.choose(wanted), sticky.choose(wanted));
    }
    assert!(restored.set_state(&[1, 2], 0, 0).is_err());
    assert!(restored.set_state(&[0; 624], 625, 0).is_err());
    sticky.forget();
    assert_eq!(sticky.state().2, 0);
    for probability in [-0.1, 1.1, f64::NAN] {
        assert!(Sticky::new(probability).is_err());
    }
}
