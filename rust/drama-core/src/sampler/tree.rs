//! A sum tree whose weights may differ by any power of two.

use crate::{
    error::Result,
    memory::{prefetch, table},
};

/// Children of one node: one cache line of nodes.
const FANOUT: usize = 8;
/// The largest point that `find` takes.
const BELOW_ONE: f64 = 1.0 - f64::EPSILON;
/// Beyond this, exponents saturate. The difference of any two exponents fits an `i32`.
const EXPONENT_LIMIT: f64 = (1 << 29) as f64;

/// The number `mantissa * 2^exponent`, with a mantissa in [1, 2], or zero with an exponent below all others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Weight {
    mantissa: f32,
    exponent: i32,
}

impl Weight {
    pub(super) const ZERO: Weight = Weight { mantissa: 0.0, exponent: -(1 << 30) };

    /// `e^x` for any finite `x`.
    pub(super) fn exp(x: f64) -> Self {
        let log2 = (x * std::f64::consts::LOG2_E).clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT);
        let exponent = log2.floor();
        Self { mantissa: ((log2 - exponent) as f32).exp2(), exponent: exponent as i32 }
    }

    /// The binary logarithm of a weight above zero.
    pub(super) fn log2(self) -> f64 {
        f64::from(self.exponent) + f64::from(self.mantissa.log2())
    }
}

/// The weights of the children of one node, laid out for vector instructions.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
struct Group {
    mantissas: [f32; FANOUT],
    exponents: [i32; FANOUT],
}

// The methods are compiled into both versions of the loops over them, which is why they must be inlined.
#[allow(clippy::inline_always)]
impl Group {
    const ZERO: Group =
        Group { mantissas: [Weight::ZERO.mantissa; FANOUT], exponents: [Weight::ZERO.exponent; FANOUT] };

    #[inline(always)]
    fn put(&mut self, child: usize, weight: Weight) {
        self.mantissas[child] = weight.mantissa;
        self.exponents[child] = weight.exponent;
    }

    /// The largest exponent, and the children as plain numbers relative to it. Children 2^1023 times smaller than
    /// the largest count as zero: they could not be drawn anyway.
    #[inline(always)]
    fn scaled(&self) -> (i32, [f64; FANOUT]) {
        let top = self.exponents.iter().copied().fold(i32::MIN, i32::max);
        let powers = self.exponents.map(|exponent| (1023 + exponent - top).max(0));
        let powers = powers.map(|power| f64::from_bits((power as u64) << 52));
        let mut scaled = self.mantissas.map(f64::from);
        for (scaled, power) in scaled.iter_mut().zip(powers) {
            *scaled *= power;
        }
        (top, scaled)
    }

    /// The largest exponent, and the running sums of the children relative to it.
    #[inline(always)]
    fn running(&self) -> (i32, Running) {
        let (top, mut sums) = self.scaled();
        // One after the other: a child without weight adds exactly nothing.
        for child in 1..FANOUT {
            sums[child] += sums[child - 1];
        }
        (top, Running(sums))
    }
}

/// Running sums of the children of one node, relative to its largest exponent.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(align(64))]
struct Running([f64; FANOUT]);

#[allow(clippy::inline_always)] // As above.
impl Running {
    /// The sum of the children whose largest exponent is `top`.
    #[inline(always)]
    fn total(&self, top: i32) -> Weight {
        let sum = self.0[FANOUT - 1];
        if sum == 0.0 {
            return Weight::ZERO;
        }
        let carry = ((sum.to_bits() >> 52) as i32) - 1023;
        let mantissa = f64::from_bits(sum.to_bits() - ((i64::from(carry) as u64) << 52)) as f32;
        Weight { mantissa, exponent: top + carry }
    }

    /// The child under `point` in [0, 1), and where in [0, 1) of that child the point is; the total is not zero.
    #[inline(always)]
    fn child_at(&self, point: f64) -> (usize, f64) {
        // The first child whose running sum exceeds the target, and so has a weight; the target is below the total.
        let target = point * self.0[FANOUT - 1];
        let child = self.0.iter().map(|&sum| usize::from(sum <= target)).sum::<usize>() % FANOUT;
        let before = if child == 0 { 0.0 } else { self.0[child - 1] };
        (child, ((target - before) / (self.0[child] - before)).clamp(0.0, BELOW_ONE))
    }
}

/// Sum tree over `len` leaves. Every node is computed from its children alone, so no error builds up and the same
/// leaves always give the same tree.
pub(super) struct SumTree {
    len: usize,
    /// Leaves first, the root group last.
    levels: Vec<Vec<Group>>,
    /// By level, what `find` needs of the groups: the leaves, which are many, go without.
    running: Vec<Vec<Running>>,
    /// Scratch of `set`: the nodes to compute anew, and a bit for each of them.
    dirty: Vec<usize>,
    marks: Vec<u64>,
}

impl SumTree {
    pub(super) fn new(len: usize) -> Result<Self> {
        let what = "the weights of a sampler";
        let mut levels = Vec::new();
        let mut nodes = len;
        loop {
            nodes = nodes.div_ceil(FANOUT);
            levels.push(table(Group::ZERO, nodes, what)?);
            if nodes <= 1 {
                break;
            }
        }
        let marks = table(0, levels[0].len().div_ceil(64), what)?;
        let mut running = vec![Vec::new()];
        for level in &levels[1..] {
            running.push(table(Running([0.0; FANOUT]), level.len(), what)?);
        }
        Ok(Self { len, levels, running, dirty: Vec::new(), marks })
    }

    /// Sets every leaf.
    pub(super) fn fill(&mut self, weight: impl Fn(usize) -> Weight) {
        for leaf in 0..self.len {
            self.levels[0][leaf / FANOUT].put(leaf % FANOUT, weight(leaf));
        }
        for level in 0..self.levels.len() {
            for node in 0..self.levels[level].len() {
                self.refresh(level, node);
            }
        }
    }

    /// Computes anew what is kept of a group outside it.
    #[inline(always)]
    #[allow(clippy::inline_always)] // Compiled into each version.
    fn refresh(&mut self, level: usize, node: usize) {
        let (top, running) = self.levels[level][node].running();
        if level > 0 {
            self.running[level][node] = running;
        }
        if let Some(above) = self.levels.get_mut(level + 1) {
            above[node / FANOUT].put(node % FANOUT, running.total(top));
        }
    }

    /// A leaf.
    pub(super) fn get(&self, leaf: usize) -> Weight {
        let group = &self.levels[0][leaf / FANOUT];
        Weight { mantissa: group.mantissas[leaf % FANOUT], exponent: group.exponents[leaf % FANOUT] }
    }

    /// Sets some leaves, then each node above them once.
    pub(super) fn set(&mut self, leaves: impl Iterator<Item = (usize, Weight)>) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for (leaf, weight) in leaves {
            let group = leaf / FANOUT;
            self.levels[0][group].put(leaf % FANOUT, weight);
            if mark(&mut self.marks, group) {
                dirty.push(group);
            }
        }
        self.propagate(&mut dirty);
        dirty.clear();
        self.dirty = dirty;
    }

    /// Computes anew what is above the marked groups of leaves `dirty`.
    fn propagate(&mut self, dirty: &mut Vec<usize>) {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has what the function is compiled for.
            return unsafe { self.propagate_avx2(dirty) };
        }
        self.propagate_any(dirty);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn propagate_avx2(&mut self, dirty: &mut Vec<usize>) {
        self.propagate_any(dirty);
    }

    #[inline(always)]
    #[allow(clippy::inline_always)] // Compiled into each version.
    fn propagate_any(&mut self, dirty: &mut Vec<usize>) {
        for level in 0..self.levels.len() {
            for node in &*dirty {
                self.marks[node / 64] = 0;
            }
            let last = level + 1 == self.levels.len();
            dirty.retain_mut(|node| {
                self.refresh(level, *node);
                *node /= FANOUT;
                !last && mark(&mut self.marks, *node)
            });
        }
    }

    /// Puts into each of `leaves` the leaf under the point in [0, 1) beside it, each leaf's share of which is its
    /// share of the weight; `None` where all weights are zero. A leaf of weight zero is never returned.
    pub(super) fn find(&self, points: &mut [f64], leaves: &mut [usize]) -> Option<()> {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has what the function is compiled for.
            return unsafe { self.find_avx2(points, leaves) };
        }
        self.find_any(points, leaves)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn find_avx2(&self, points: &mut [f64], leaves: &mut [usize]) -> Option<()> {
        self.find_any(points, leaves)
    }

    #[inline(always)]
    #[allow(clippy::inline_always)] // Compiled into each version.
    fn find_any(&self, points: &mut [f64], leaves: &mut [usize]) -> Option<()> {
        if self.levels.last()?.first()?.running().1.0[FANOUT - 1] == 0.0 {
            return None;
        }
        leaves.fill(0);
        // Level by level, so that the reads of all points are under way together.
        for (level, running) in self.running.iter().enumerate().skip(1).rev() {
            for (point, node) in points.iter_mut().zip(leaves.iter_mut()) {
                let (child, inside) = running[*node].child_at(*point);
                *point = inside;
                *node = *node * FANOUT + child;
                if level > 1 {
                    prefetch(&self.running[level - 1], *node);
                } else {
                    prefetch(&self.levels[0], *node);
                }
            }
        }
        for (point, node) in points.iter().zip(leaves.iter_mut()) {
            *node = *node * FANOUT + self.levels[0][*node].running().1.child_at(*point).0;
        }
        Some(())
    }
}

/// Sets a bit; `false` where it was set.
fn mark(marks: &mut [u64], at: usize) -> bool {
    let (word, bit) = (&mut marks[at / 64], 1 << (at % 64));
    let new = *word & bit == 0;
    *word |= bit;
    new
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Shares of the leaves, computed with the largest exponent taken off.
    fn shares(exponents: &[Option<f64>]) -> Vec<f64> {
        let top = exponents.iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = exponents.iter().map(|x| x.map_or(0.0, |x| (x - top).exp())).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|weight| weight / sum).collect()
    }

    fn tree(exponents: &[Option<f64>]) -> SumTree {
        let mut tree = SumTree::new(exponents.len()).unwrap();
        tree.fill(|leaf| exponents[leaf].map_or(Weight::ZERO, Weight::exp));
        tree
    }

    /// How much of [0, 1) falls to each leaf, on an even grid of points.
    fn measured(tree: &SumTree, len: usize, points: usize) -> Vec<f64> {
        let mut grid: Vec<f64> = (0..points).map(|i| (i as f64 + 0.5) / points as f64).collect();
        let mut leaves = vec![0; points];
        tree.find(&mut grid, &mut leaves).unwrap();
        let mut shares = vec![0.0; len];
        for leaf in leaves {
            shares[leaf] += 1.0 / points as f64;
        }
        shares
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn each_leaf_has_its_share(
            exponents in prop::collection::vec(prop::option::weighted(0.8, -3.0..3.0_f64), 1..200),
            offset in prop::sample::select(vec![0.0, 1e5, -1e5, 1e7, -1e7]),
        ) {
            prop_assume!(exponents.iter().any(Option::is_some));
            let shifted: Vec<_> = exponents.iter().map(|x| x.map(|x| x + offset)).collect();
            let expected = shares(&shifted);
            let points = 5000;
            for (measured, expected) in measured(&tree(&shifted), shifted.len(), points).iter().zip(expected) {
                // Both ends of a leaf's interval can be off by one point of the grid.
                prop_assert!((measured - expected).abs() <= 2.0 / points as f64, "{measured} {expected}");
                prop_assert!(expected > 0.0 || *measured == 0.0);
            }
        }

        #[test]
        fn setting_leaves_equals_building_anew(
            start in prop::collection::vec(prop::option::of(-1e6..1e6_f64), 1..300),
            changes in prop::collection::vec((any::<prop::sample::Index>(), prop::option::of(-1e6..1e6_f64)), 0..80),
        ) {
            let mut exponents = start;
            let mut changed = tree(&exponents);
            let changes: Vec<_> = changes.iter().map(|(at, x)| (at.index(exponents.len()), *x)).collect();
            changed.set(changes.iter().map(|&(leaf, x)| (leaf, x.map_or(Weight::ZERO, Weight::exp))));
            for (leaf, x) in changes {
                exponents[leaf] = x;
            }
            let built = tree(&exponents);
            prop_assert_eq!(&changed.levels, &built.levels);
            prop_assert_eq!(&changed.running, &built.running);
            prop_assert!(changed.marks.iter().all(|&word| word == 0));
        }
    }

    #[test]
    fn extreme_exponents_leave_the_lesser_leaf_alone() {
        for (small, large) in [(-1e5, 0.0), (0.0, 1e5), (-1e9, 1e9), (-f64::MAX, f64::MAX)] {
            let mut tree = tree(&[Some(small), None, Some(large)]);
            assert_eq!(measured(&tree, 3, 1000)[..2], [0.0, 0.0]);
            tree.set(std::iter::once((2, Weight::ZERO)));
            assert_eq!(measured(&tree, 3, 1000)[1..], [0.0, 0.0]);
        }
    }

    #[test]
    fn ends_of_the_interval_find_leaves_with_weight() {
        let tree = tree(&[None, Some(0.0), Some(-700.0), None, None, None, None, None, None, Some(1.0), None]);
        let (mut points, mut leaves) = ([0.0, BELOW_ONE], [0; 2]);
        tree.find(&mut points, &mut leaves).unwrap();
        assert_eq!(leaves, [1, 9]);
    }

    #[test]
    fn nothing_is_found_without_weight() {
        assert!(tree(&[None; 20]).find(&mut [0.5], &mut [0]).is_none());
    }
}
