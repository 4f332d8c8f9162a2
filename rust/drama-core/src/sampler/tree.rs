//! A sum tree whose weights may differ by any power of two.

/// Children of one node: one cache line of nodes.
const FANOUT: usize = 8;
/// Beyond this, exponents saturate.
const EXPONENT_LIMIT: f64 = (1 << 30) as f64;

/// The number `mantissa * 2^exponent`, with a mantissa in [1, 2), or zero with all bits zero.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Weight {
    mantissa: f32,
    exponent: i32,
}

impl Weight {
    pub(super) const ZERO: Weight = Weight { mantissa: 0.0, exponent: 0 };

    /// `e^x` for any finite `x`.
    pub(super) fn exp(x: f64) -> Self {
        let log2 = (x * std::f64::consts::LOG2_E).clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT);
        let exponent = log2.floor();
        // Rounding to f32 may give 2.0 itself, which every use below bears.
        Self { mantissa: (log2 - exponent).exp2() as f32, exponent: exponent as i32 }
    }

    fn is_zero(self) -> bool {
        self.mantissa == 0.0
    }
}

#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Group([Weight; FANOUT]);

impl Group {
    /// The largest exponent, and the children as plain numbers relative to it. Children 2^1022 times smaller than
    /// the largest become zero: they could not be drawn anyway.
    fn scaled(&self) -> (i32, [f64; FANOUT]) {
        let exponents = self.0.map(|w| if w.is_zero() { i32::MIN } else { w.exponent });
        let top = exponents.iter().copied().fold(i32::MIN, i32::max);
        let mut scaled = [0.0; FANOUT];
        for ((out, weight), exponent) in scaled.iter_mut().zip(&self.0).zip(exponents) {
            // Exponents lie within +-2^30 but for the mark of zero, whose mantissa is zero whatever the power.
            let power = (1023 + exponent.saturating_sub(top)).max(0);
            *out = f64::from(weight.mantissa) * f64::from_bits((power as u64) << 52);
        }
        (top, scaled)
    }

    fn sum(&self) -> Weight {
        let (top, scaled) = self.scaled();
        let sum: f64 = scaled.iter().sum();
        if sum == 0.0 {
            return Weight::ZERO;
        }
        let carry = ((sum.to_bits() >> 52) as i32) - 1023;
        let mantissa = f64::from_bits(sum.to_bits() - ((i64::from(carry) as u64) << 52)) as f32;
        Weight { mantissa, exponent: top + carry }
    }
}

/// Sum tree over `len` leaves. Every node is computed from its children alone, so no error builds up and the same
/// leaves always give the same tree.
pub(super) struct SumTree {
    len: usize,
    /// Leaves first, the root group last.
    levels: Vec<Vec<Group>>,
    dirty: Vec<usize>,
}

impl SumTree {
    pub(super) fn new(len: usize) -> Self {
        let mut levels = Vec::new();
        let mut nodes = len;
        loop {
            nodes = nodes.div_ceil(FANOUT);
            levels.push(vec![Group::default(); nodes]);
            if nodes <= 1 {
                break;
            }
        }
        Self { len, levels, dirty: Vec::new() }
    }

    /// Sets every leaf.
    pub(super) fn fill(&mut self, weight: impl Fn(usize) -> Weight) {
        for leaf in 0..self.len {
            self.levels[0][leaf / FANOUT].0[leaf % FANOUT] = weight(leaf);
        }
        for level in 1..self.levels.len() {
            for node in 0..self.levels[level - 1].len() {
                self.refresh(level, node);
            }
        }
    }

    /// Sets some leaves, then each node above them once.
    pub(super) fn set(&mut self, leaves: impl Iterator<Item = (usize, Weight)>) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for (leaf, weight) in leaves {
            let group = leaf / FANOUT;
            self.levels[0][group].0[leaf % FANOUT] = weight;
            if dirty.last() != Some(&group) {
                dirty.push(group);
            }
        }
        dirty.sort_unstable();
        for level in 1..self.levels.len() {
            dirty.dedup();
            for node in &mut dirty {
                self.refresh(level, *node);
                *node /= FANOUT;
            }
        }
        dirty.clear();
        self.dirty = dirty;
    }

    fn refresh(&mut self, level: usize, node: usize) {
        let sum = self.levels[level - 1][node].sum();
        self.levels[level][node / FANOUT].0[node % FANOUT] = sum;
    }

    /// The leaf under `point` in [0, 1), each leaf's share of which is its share of the weight; `None` where all
    /// weights are zero. A leaf of weight zero is never returned.
    pub(super) fn find(&self, mut point: f64) -> Option<usize> {
        let mut node = 0;
        for level in self.levels.iter().rev() {
            let (_, scaled) = level[node].scaled();
            let mut rest = point * scaled.iter().sum::<f64>();
            let mut chosen = None;
            for (child, &weight) in scaled.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
                chosen = Some((child, weight));
                if rest < weight {
                    break;
                }
                rest -= weight;
            }
            let (child, weight) = chosen?;
            // Rounding can leave the point at the upper end of the child.
            point = (rest / weight).clamp(0.0, 1.0 - f64::EPSILON);
            node = node * FANOUT + child;
        }
        Some(node)
    }
}
