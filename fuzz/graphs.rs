//! Random graphs, as bytes say: which of the operators that passes know, and how they are joined.

use v2l_graphs::blocks;
use v2l_graphs::{Attribute, Builder, DataType, Dim, Initializer, Model, TensorData, Value};

const F32: DataType = DataType::Float;

/// Elements that a value may have in the largest run.
const MOST_ELEMENTS: usize = 200_000;

/// Choices, as bytes say them; where they end, always the first.
pub(crate) struct Draws<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Draws<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let byte = self.bytes.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        usize::from(byte) % bound.max(1)
    }

    fn yes(&mut self) -> bool {
        self.below(2) == 1
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    fn is_over(&self) -> bool {
        self.at >= self.bytes.len()
    }
}

/// Numbers in [-1, 1) that look random.
pub(crate) fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count + 8).map(|_| next()).skip(8).collect()
}

/// An extent: a number times named ones.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Extent {
    number: usize,
    names: Vec<&'static str>,
}

/// As many as there are timesteps.
pub(crate) const ROWS: &str = "batch";
/// Of the latents, of the text, and of a setting.
pub(crate) const NAMES: [&str; 3] = ["tokens", "length", "width"];
/// Timesteps in the largest run.
pub(crate) const MOST_ROWS: usize = 100;

impl Extent {
    fn named(name: &'static str) -> Self {
        Self { number: 1, names: vec![name] }
    }

    fn fixed(number: usize) -> Self {
        Self { number, names: Vec::new() }
    }

    fn number(&self) -> Option<usize> {
        self.names.is_empty().then_some(self.number)
    }

    fn times(&self, other: &Self) -> Self {
        let mut names = [&self.names[..], &other.names].concat();
        names.sort_unstable();
        Self { number: self.number * other.number, names }
    }

    fn most(&self) -> usize {
        self.names.iter().fold(self.number, |n, name| n * if *name == ROWS { MOST_ROWS } else { 4 })
    }
}

/// A value of f32 that other operators may read.
#[derive(Clone)]
struct Known {
    value: Value,
    shape: Vec<Extent>,
}

fn broadcast(a: &[Extent], b: &[Extent]) -> Option<Vec<Extent>> {
    let rank = a.len().max(b.len());
    let one = Extent::fixed(1);
    let at = |s: &[Extent], axis: usize| (axis + s.len()).checked_sub(rank).map_or(one.clone(), |i| s[i].clone());
    (0..rank)
        .map(|axis| match (at(a, axis), at(b, axis)) {
            (x, y) if x == y => Some(x),
            (x, y) if x == one => Some(y),
            (x, y) if y == one => Some(x),
            _ => None,
        })
        .collect()
}

/// What is drawn.
pub(crate) struct Drawn {
    pub(crate) model: Model,
    /// What the last output adds: [`draw`] says of which kind.
    pub(crate) settings_as_long_as_rows: bool,
}

/// What to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// From every input.
    Any,
    /// From timesteps and settings, until the end.
    Timesteps,
    /// As `Timesteps`, and at the end the mean of all rows is added to one of the values.
    Mixing,
    /// As `Mixing`, but what is added is what the mean would be if each row were alone: what a proof comes to that takes the mean
    /// for a row's own.
    Planted,
}

/// A graph with the inputs `x` `[batch, tokens, 4]`, `time` and `guide` `[batch]`, `text` `[batch, length, 4]` or
/// `[length, 4]`, and `setting`, a vector. The same draws give the same graph for both kinds that mix, up to what they add.
pub(crate) fn draw(draws: &mut Draws<'_>, kind: Kind) -> Drawn {
    let mut maker = Maker { b: Builder::new("g"), draws, pool: Vec::new(), used: 0 };
    let [rows, tokens, length, width] = [ROWS, NAMES[0], NAMES[1], NAMES[2]].map(Extent::named);
    let shape = |shape: &[Extent]| shape.to_vec();
    let x = maker.input("x", shape(&[rows.clone(), tokens, Extent::fixed(4)]));
    let timed = maker.timesteps();
    let guide = maker.input("guide", shape(std::slice::from_ref(&rows)));
    let text = match maker.draws.yes() {
        true => maker.input("text", shape(&[rows.clone(), length, Extent::fixed(4)])),
        false => maker.input("text", shape(&[length, Extent::fixed(4)])),
    };
    let free = maker.draws.yes();
    let setting = maker.input("setting", vec![if free { width } else { Extent::fixed(4) }]);
    let column = maker.b.unsqueeze(&guide.value, &[1]);
    maker.pool = vec![setting, guide, Known { value: column, shape: vec![rows, Extent::fixed(1)] }];
    if kind == Kind::Any {
        maker.pool.extend([x.clone(), text.clone()]);
    }
    maker.pool.push(timed);
    maker.linear();
    let most = 6 + maker.draws.below(18);
    for _ in 0..most {
        maker.grow();
        if maker.draws.is_over() {
            break;
        }
    }
    maker.finish(kind, [x, text]);
    Drawn { model: maker.b.finish().expect("names that are told apart"), settings_as_long_as_rows: free }
}

struct Maker<'a, 'b> {
    b: Builder,
    draws: &'a mut Draws<'b>,
    pool: Vec<Known>,
    /// Weights so far.
    used: u64,
}

impl Maker<'_, '_> {
    fn input(&mut self, name: &str, shape: Vec<Extent>) -> Known {
        let value = self.b.input(name, F32, dims(&shape, name));
        Known { value, shape }
    }

    /// `[batch, 4]`: waves of the timesteps, or rows of a table that they choose.
    fn timesteps(&mut self) -> Known {
        let dtype = if self.draws.yes() { DataType::Int64 } else { F32 };
        let time = self.b.input("time", dtype, [Dim::from(ROWS)]);
        let narrow = self.draws.below(6);
        let shape = vec![Extent::named(ROWS), Extent::fixed(4)];
        if dtype == DataType::Int64 && self.draws.yes() {
            let (eight, table) = (self.b.int(8), self.weight(&[8, 4]));
            let index = self.b.op("Mod", &[&time, &eight]);
            return Known { value: self.b.gather(&table, &index, 0), shape };
        }
        // Rounding that is the graph's own: 999 is 1000 in bfloat16.
        let time = match narrow {
            0 => self.b.cast(&time, DataType::Bfloat16),
            1 => self.b.cast(&time, DataType::Float16),
            _ => time,
        };
        let time = if narrow < 2 { self.b.cast(&time, F32) } else { time };
        Known { value: blocks::timestep_sinusoid(&mut self.b, &time, 4, true, 0.0), shape }
    }

    fn weight(&mut self, shape: &[usize]) -> Value {
        self.used += 1;
        let scale = (shape.iter().product::<usize>() as f32 / shape.last().copied().unwrap_or(1) as f32).sqrt().recip();
        let values = noise(self.used, shape.iter().product());
        let bytes: Vec<u8> = values.iter().flat_map(|v| (v * 1.7 * scale).to_le_bytes()).collect();
        let name = format!("layers.{}.weight", self.used);
        let dtype = [F32, F32, F32, DataType::Float16, DataType::Bfloat16][self.draws.below(5)];
        let data = TensorData::raw(bytes).converted(F32, dtype);
        let w = self.b.initializer(&name, Initializer { dtype, shape: shape.to_vec(), data, external: false });
        if dtype == F32 { w } else { self.b.cast(&w, F32) }
    }

    /// A value, most often one of the last.
    fn pick(&mut self) -> Known {
        let count = self.pool.len();
        let back = if self.draws.below(4) > 0 { count.min(4) } else { count };
        self.pool[count - 1 - self.draws.below(back)].clone()
    }

    fn pick_that(&mut self, fits: impl Fn(&Known) -> bool) -> Option<Known> {
        let fitting: Vec<Known> = self.pool.iter().filter(|known| fits(known)).cloned().collect();
        let count = fitting.len();
        (count > 0).then(|| fitting[count - 1 - self.draws.below(count)].clone())
    }

    /// Takes a value in, unless it would be large.
    fn push(&mut self, value: Value, shape: Vec<Extent>) {
        let count = shape.iter().try_fold(1usize, |n, extent| n.checked_mul(extent.most()));
        if shape.len() <= 5 && count.is_some_and(|count| count <= MOST_ELEMENTS) {
            self.pool.push(Known { value, shape });
        }
    }

    fn grow(&mut self) {
        match self.draws.below(28) {
            0 => self.unary(),
            1 | 2 => self.binary(),
            3 | 4 => self.linear(),
            5 => drop(self.product()),
            6 | 7 => self.reduce(),
            8 => self.softmax(),
            9 => drop(self.norm()),
            10 => self.transpose(),
            11 => drop(self.merge()),
            12 => drop(self.part()),
            13 => self.axes(),
            14 => drop(self.concat()),
            15 => drop(self.cut()),
            16 => drop(self.gather()),
            17 => drop(self.expand()),
            18 => self.count(),
            19 => drop(self.along()),
            20 => self.body(),
            21 => self.twin(),
            22 | 23 => drop(self.wide()),
            24 | 25 => drop(self.rotation()),
            _ => drop(if self.draws.yes() { self.channels() } else { self.attention() }),
        }
    }

    fn unary(&mut self) {
        const OPS: [&str; 14] = [
            "Tanh",
            "Sigmoid",
            "Sin",
            "Cos",
            "Relu",
            "Neg",
            "Abs",
            "Erf",
            "Softplus",
            "Identity",
            "Gelu",
            "LeakyRelu",
            "Elu",
            "Dropout",
        ];
        let (x, op) = (self.pick(), self.draws.of(&OPS));
        let value = self.b.op(op, &[&x.value]);
        self.push(value, x.shape);
    }

    /// The same twice, by nodes of their own.
    fn twin(&mut self) {
        let x = self.pick();
        let (a, c) = (self.b.op("Tanh", &[&x.value]), self.b.op("Tanh", &[&x.value]));
        let (half, again) = (self.b.floats(&[1], &[0.5]), self.b.floats(&[1], &[0.5]));
        let (a, c) = (self.b.op("Mul", &[&a, &half]), self.b.op("Mul", &[&c, &again]));
        let value = self.b.op("Add", &[&a, &c]);
        let shape = if x.shape.is_empty() { vec![Extent::fixed(1)] } else { x.shape };
        self.push(value, shape);
    }

    fn binary(&mut self) {
        let a = self.pick();
        let Some(other) = self.pick_that(|b| broadcast(&a.shape, &b.shape).is_some()) else { return };
        let Some(shape) = broadcast(&a.shape, &other.shape) else { return };
        let (a, c) = if self.draws.yes() { (a, other) } else { (other, a) };
        let value = match self.draws.below(8) {
            0 => self.b.op("Sub", &[&a.value, &c.value]),
            1 | 2 => self.b.op("Mul", &[&a.value, &c.value]),
            3 => self.b.op("Max", &[&a.value, &c.value]),
            4 => {
                let (size, one) = (self.b.op("Abs", &[&c.value]), self.b.float(1.0));
                let size = self.b.op("Add", &[&size, &one]);
                self.b.op("Div", &[&a.value, &size])
            }
            5 => {
                let (limit, zero) = (self.b.float(0.0123), self.b.float(0.0));
                let large = self.b.op("Greater", &[&a.value, &limit]);
                let scaled = self.b.op("Mul", &[&a.value, &c.value]);
                self.b.op("Where", &[&large, &scaled, &zero])
            }
            _ => self.b.op("Add", &[&a.value, &c.value]),
        };
        self.push(value, shape);
    }

    /// A layer over the last axis, its weight as it is or turned.
    fn linear(&mut self) {
        let fits = |known: &Known| known.shape.last().and_then(Extent::number).is_some_and(|n| n > 1);
        let Some(x) = self.pick_that(fits) else { return };
        let (from, to) = (x.shape.last().and_then(Extent::number).unwrap_or(1), self.draws.of(&[4, 4, 2, 6]));
        let mut shape = x.shape.clone();
        shape.pop();
        shape.push(Extent::fixed(to));
        let value = match self.draws.below(3) {
            0 if x.shape.len() == 2 => {
                let (w, bias) = (self.weight(&[to, from]), self.weight(&[to]));
                blocks::linear(&mut self.b, &x.value, &w, Some(&bias))
            }
            1 => {
                let w = self.weight(&[to, from]);
                let turned = self.b.transpose(&w, &[1, 0]);
                self.b.op("MatMul", &[&x.value, &turned])
            }
            _ => {
                let w = self.weight(&[from, to]);
                self.b.op("MatMul", &[&x.value, &w])
            }
        };
        self.push(value, shape);
    }

    /// Two layers by way of 128 features. Their matrices are large enough to count as weights, which an engine may store in
    /// another type, and the second one's for 8 bits.
    fn wide(&mut self) -> Option<()> {
        const WIDTH: usize = 128;
        let most = |x: &Known| x.shape.iter().try_fold(WIDTH / 4, |n, extent| n.checked_mul(extent.most()));
        let fits = |x: &Known| {
            let four = x.shape.last().and_then(Extent::number) == Some(4);
            four && x.shape.len() >= 2 && most(x).is_some_and(|count| count <= MOST_ELEMENTS)
        };
        let x = self.pick_that(fits)?;
        let first = self.weight(&[4, WIDTH]);
        let hidden = self.b.op("MatMul", &[&x.value, &first]);
        let hidden = self.b.op("Tanh", &[&hidden]);
        let value = match self.draws.below(3) {
            0 if x.shape.len() == 2 => {
                let second = self.weight(&[4, WIDTH]);
                blocks::linear(&mut self.b, &hidden, &second, None)
            }
            1 => {
                let second = self.weight(&[4, WIDTH]);
                let turned = self.b.transpose(&second, &[1, 0]);
                self.b.op("MatMul", &[&hidden, &turned])
            }
            _ => {
                let second = self.weight(&[WIDTH, 4]);
                self.b.op("MatMul", &[&hidden, &second])
            }
        };
        let tenth = self.b.float(0.1);
        let value = self.b.op("Mul", &[&value, &tenth]);
        self.push(value, x.shape);
        Some(())
    }

    /// A value by another one, turned: over batches of either.
    fn product(&mut self) -> Option<()> {
        let a = self.pick_that(|a| a.shape.len() >= 2)?;
        let inner = a.shape.last()?.clone();
        let batch = |s: &[Extent]| s[..s.len() - 2].to_vec();
        let other = self.pick_that(|b| {
            b.shape.len() >= 2
                && b.shape.last() == Some(&inner)
                && broadcast(&batch(&a.shape), &batch(&b.shape)).is_some()
        })?;
        let rank = other.shape.len();
        let mut perm: Vec<i64> = (0..rank as i64).collect();
        perm.swap(rank - 1, rank - 2);
        let turned = self.b.transpose(&other.value, &perm);
        let mut shape = broadcast(&batch(&a.shape), &batch(&other.shape))?;
        shape.extend([a.shape[a.shape.len() - 2].clone(), other.shape[rank - 2].clone()]);
        let value = self.b.op("MatMul", &[&a.value, &turned]);
        let third = self.b.float(0.3);
        let value = self.b.op("Mul", &[&value, &third]);
        self.push(value, shape);
        Some(())
    }

    fn reduce(&mut self) {
        const OPS: [&str; 5] = ["ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSum"];
        let (x, op, keep) = (self.pick(), self.draws.of(&OPS), self.draws.yes());
        let rank = x.shape.len();
        let mut axes: Vec<i64> = (0..rank as i64).filter(|_| self.draws.below(3) == 0).collect();
        if axes.is_empty() && rank > 0 {
            axes.push(self.draws.below(rank) as i64);
        }
        let all = axes.len() == rank;
        let kept = x.shape.iter().enumerate().filter_map(|(at, extent)| match axes.contains(&(at as i64)) {
            true => keep.then(|| Extent::fixed(1)),
            false => Some(extent.clone()),
        });
        let shape: Vec<Extent> = kept.collect();
        let signed: Vec<i64> = axes.iter().map(|&a| if self.draws.yes() { a - rank as i64 } else { a }).collect();
        let list = self.b.ints(&signed);
        let mut inputs = vec![&x.value];
        if !all || self.draws.yes() {
            inputs.push(&list);
        }
        let value = self.b.node(op, &inputs).attr("keepdims", i64::from(keep)).out();
        self.push(value, shape);
    }

    fn softmax(&mut self) {
        let Some(x) = self.pick_that(|x| !x.shape.is_empty()) else { return };
        let (rank, op) = (x.shape.len() as i64, self.draws.of(&["Softmax", "LogSoftmax"]));
        let axis = self.draws.below(2 * rank as usize) as i64 - rank;
        let value = self.b.node(op, &[&x.value]).attr("axis", axis).out();
        self.push(value, x.shape);
    }

    /// A norm over the last axis, with a scale and a shift of its own, or from elsewhere.
    fn norm(&mut self) -> Option<()> {
        let last = |x: &Known| x.shape.last().and_then(Extent::number).filter(|&n| n > 1);
        let x = self.pick_that(|x| last(x).is_some())?;
        let width = last(&x)?;
        let (scale, bias) = (self.weight(&[width]), self.weight(&[width]));
        let normal = match self.draws.yes() {
            true => blocks::layer_norm(&mut self.b, &x.value, &scale, Some(&bias), 1e-2),
            false => blocks::rms_norm(&mut self.b, &x.value, &scale, 1e-2),
        };
        let fits = |s: &Known| broadcast(&x.shape, &s.shape).as_ref() == Some(&x.shape);
        let modulation = (self.pick_that(fits)?, self.pick_that(fits)?);
        let value = match self.draws.yes() {
            true => blocks::modulate(&mut self.b, &normal, &modulation.0.value, &modulation.1.value),
            false => normal,
        };
        self.push(value, x.shape);
        Some(())
    }

    fn transpose(&mut self) {
        let x = self.pick();
        let mut perm: Vec<i64> = (0..x.shape.len() as i64).collect();
        for at in (1..perm.len()).rev() {
            perm.swap(at, self.draws.below(at + 1));
        }
        let value = self.b.transpose(&x.value, &perm);
        self.push(value, perm.iter().map(|&a| x.shape[a as usize].clone()).collect());
    }

    /// Two axes as one, the others by number, copied, or as the value's own shape says.
    fn merge(&mut self) -> Option<()> {
        let x = self.pick_that(|x| x.shape.len() >= 2)?;
        let at = self.draws.below(x.shape.len() - 1);
        let mut shape = x.shape.clone();
        let joined = shape.remove(at + 1).times(&shape[at]);
        shape[at] = joined;
        let asked = self.draws.yes();
        let extents: Vec<v2l_graphs::Extent> = (0..shape.len())
            .map(|axis| match shape[axis].number() {
                _ if axis == at => (-1i64).into(),
                _ if axis < at && !asked => 0i64.into(),
                Some(n) if !asked => n.into(),
                _ => (&self.b.extent(&x.value, if axis < at { axis } else { axis + 1 } as i64)).into(),
            })
            .collect();
        let value = self.b.reshape(&x.value, &extents);
        self.push(value, shape);
        Some(())
    }

    /// An axis as two, or everything as one row or flat.
    fn part(&mut self) -> Option<()> {
        let whole = |x: &Known| x.shape.iter().fold(Extent::fixed(1), |n, extent| n.times(extent));
        if self.draws.below(3) == 0 {
            let x = self.pick_that(|x| !x.shape.is_empty())?;
            let total = whole(&x);
            let (extents, shape): (Vec<v2l_graphs::Extent>, _) = match self.draws.yes() {
                true => (vec![1i64.into(), (-1i64).into()], vec![Extent::fixed(1), total]),
                false => (vec![(-1i64).into()], vec![total]),
            };
            let value = self.b.reshape(&x.value, &extents);
            self.push(value, shape);
            return Some(());
        }
        let even = |x: &Known| x.shape.last().and_then(Extent::number).filter(|n| *n > 0 && n % 2 == 0);
        let x = self.pick_that(|x| even(x).is_some())?;
        let half = even(&x)? / 2;
        let mut shape = x.shape.clone();
        let last = shape.len() - 1;
        shape.splice(last.., [Extent::fixed(half), Extent::fixed(2)]);
        let infers = self.draws.yes();
        let extents: Vec<v2l_graphs::Extent> = (0..shape.len())
            .map(|axis| match shape[axis].number() {
                _ if axis == 0 && last > 0 && infers => (-1i64).into(),
                _ if axis < last => 0i64.into(),
                n => n.unwrap_or(1).into(),
            })
            .collect();
        let value = self.b.reshape(&x.value, &extents);
        self.push(value, shape);
        Some(())
    }

    fn axes(&mut self) {
        let mut x = self.pick();
        let ones: Vec<usize> = (0..x.shape.len()).filter(|&at| x.shape[at] == Extent::fixed(1)).collect();
        let value = match ones.is_empty() || self.draws.yes() {
            true => {
                let at = self.draws.below(x.shape.len() + 1);
                x.shape.insert(at, Extent::fixed(1));
                self.b.unsqueeze(&x.value, &[at as i64])
            }
            false => {
                let at = self.draws.of(&ones);
                x.shape.remove(at);
                self.b.squeeze(&x.value, &[at as i64])
            }
        };
        self.push(value, x.shape);
    }

    fn concat(&mut self) -> Option<()> {
        let a = self.pick_that(|x| !x.shape.is_empty())?;
        let at = self.draws.below(a.shape.len());
        let other = self.pick_that(|b| {
            let same = |axis: usize| axis == at || a.shape[axis] == b.shape[axis];
            b.shape.len() == a.shape.len() && a.shape[at].names == b.shape[at].names && (0..a.shape.len()).all(same)
        })?;
        let mut shape = a.shape.clone();
        shape[at].number += other.shape[at].number;
        let axis = at as i64 - if self.draws.yes() { a.shape.len() as i64 } else { 0 };
        let value = self.b.concat(&[&a.value, &other.value], axis);
        self.push(value, shape);
        Some(())
    }

    /// Some of an axis, also nothing, or the first or last of a named one.
    fn cut(&mut self) -> Option<()> {
        let x = self.pick_that(|x| !x.shape.is_empty())?;
        let at = self.draws.below(x.shape.len());
        let mut shape = x.shape.clone();
        if let Some(n) = shape[at].number().filter(|&n| n > 1)
            && n % 2 == 0
            && self.draws.yes()
        {
            shape[at] = Extent::fixed(n / 2);
            let half = self.draws.below(2);
            let value = self.b.split(&x.value, at as i64, 2).swap_remove(half);
            self.push(value, shape);
            return Some(());
        }
        let (start, end) = match shape[at].number() {
            Some(n) => {
                let start = self.draws.below(n + 1);
                let most = n - start;
                (start as i64, (start + self.draws.below(most + 1)) as i64)
            }
            None if self.draws.yes() => (0, 1),
            None => (-1, i64::MAX),
        };
        shape[at] = Extent::fixed(if start < 0 { 1 } else { (end - start) as usize });
        let value = self.b.slice(&x.value, at as i64, start.into(), end.into());
        let empty = shape[at].number == 0;
        if empty {
            // Nothing, behind what it was taken from.
            let value = self.b.concat(&[&x.value, &value], at as i64);
            self.push(value, x.shape);
            return Some(());
        }
        self.push(value, shape);
        Some(())
    }

    fn gather(&mut self) -> Option<()> {
        let x = self.pick_that(|x| !x.shape.is_empty())?;
        let at = self.draws.below(x.shape.len());
        let mut shape = x.shape.clone();
        let most = shape[at].number().unwrap_or(1);
        if most == 0 {
            return None;
        }
        let mut index = || self.draws.below(most) as i64;
        let list = [index(), index(), index() - most as i64];
        if self.draws.yes() {
            shape.remove(at);
            let index = self.b.int(list[0]);
            let value = self.b.gather(&x.value, &index, at as i64);
            self.push(value, shape);
        } else {
            shape[at] = Extent::fixed(3);
            let index = self.b.ints(&list);
            let value = self.b.gather(&x.value, &index, at as i64);
            self.push(value, shape);
        }
        Some(())
    }

    /// Repeats along new axes or those of 1, by numbers or to another value's shape.
    fn expand(&mut self) -> Option<()> {
        let x = self.pick();
        if self.draws.yes() {
            let other = self.pick_that(|b| broadcast(&x.shape, &b.shape).is_some())?;
            let shape = broadcast(&x.shape, &other.shape)?;
            let wanted = self.b.op("Shape", &[&other.value]);
            let value = self.b.op("Expand", &[&x.value, &wanted]);
            self.push(value, shape);
            return Some(());
        }
        let mut shape = x.shape.clone();
        if self.draws.yes() {
            shape.insert(0, Extent::fixed(1));
        }
        let wanted: Vec<i64> =
            shape.iter().map(|e| if *e == Extent::fixed(1) { self.draws.of(&[1, 1, 3]) } else { 1 }).collect();
        for (extent, &n) in shape.iter_mut().zip(&wanted).filter(|(_, n)| **n > 1) {
            *extent = Extent::fixed(n as usize);
        }
        let wanted = self.b.ints(&wanted);
        let value = self.b.op("Expand", &[&x.value, &wanted]);
        self.push(value, shape);
        Some(())
    }

    /// What a value's shape alone says.
    fn count(&mut self) {
        let x = self.pick();
        let tenth = self.b.float(0.1);
        if x.shape.is_empty() {
            return;
        }
        let at = self.draws.below(x.shape.len());
        let extent = self.b.extent(&x.value, at as i64);
        let (value, shape) = match self.draws.below(3) {
            0 => (self.b.cast(&extent, F32), vec![Extent::fixed(1)]),
            1 => {
                let range = self.b.range(&extent);
                (self.b.cast(&range, F32), vec![x.shape[at].clone()])
            }
            _ => {
                let whole = self.b.op("Shape", &[&x.value]);
                let zeros = self.b.op("ConstantOfShape", &[&whole]);
                let one = self.b.float(1.0);
                (self.b.op("Add", &[&zeros, &one]), x.shape.clone())
            }
        };
        let value = self.b.op("Mul", &[&value, &tenth]);
        self.push(value, shape);
    }

    /// Repeats, borders, running sums and triangles.
    fn along(&mut self) -> Option<()> {
        let mut x = self.pick_that(|x| !x.shape.is_empty())?;
        let rank = x.shape.len();
        let at = self.draws.below(rank);
        let value = match self.draws.below(4) {
            0 => {
                let mut repeats = vec![1i64; rank];
                repeats[at] = 2;
                x.shape[at].number *= 2;
                let repeats = self.b.ints(&repeats);
                self.b.op("Tile", &[&x.value, &repeats])
            }
            1 => {
                x.shape[at].number().filter(|&n| n > 0)?;
                let mut pads = vec![0i64; 2 * rank];
                pads[if self.draws.yes() { at } else { at + rank }] = 1;
                x.shape[at].number += 1;
                let pads = self.b.ints(&pads);
                self.b.op("Pad", &[&x.value, &pads])
            }
            2 => {
                let axis = self.b.int(at as i64);
                let sum = self.b.op("CumSum", &[&x.value, &axis]);
                let tenth = self.b.float(0.1);
                self.b.op("Mul", &[&sum, &tenth])
            }
            _ if rank >= 2 => self.b.op("Trilu", &[&x.value]),
            _ => return None,
        };
        self.push(value, x.shape);
        Some(())
    }

    /// A branch or a loop that captures a value.
    fn body(&mut self) {
        let x = self.pick();
        let dims = || dims(&x.shape, x.value.name());
        let made = |op: &str, name: &str| {
            let mut b = Builder::new(name);
            let y = b.scope(name, |b| b.op(op, &[&x.value]));
            b.output(&format!("{name}.y"), &y, F32, dims());
            Attribute::Graph(Box::new(b.finish().expect("one node").graph))
        };
        let count = self.pool.len();
        if self.draws.yes() {
            let (then, other) = (made("Tanh", &format!("then{count}")), made("Neg", &format!("else{count}")));
            let Some(asked) = self.pick_that(|_| true) else { return };
            let zero = self.b.float(0.0317);
            let most = self.b.node("ReduceMean", &[&asked.value]).attr("keepdims", 0).out();
            let large = self.b.op("Greater", &[&most, &zero]);
            let value = self.b.node("If", &[&large]).attr("then_branch", then).attr("else_branch", other).out();
            self.push(value, x.shape);
            return;
        }
        let name = format!("loop{count}");
        let mut b = Builder::new(name.clone());
        b.input(&format!("{name}.i"), DataType::Int64, [0usize; 0]);
        let condition = b.input(&format!("{name}.c"), DataType::Bool, [0usize; 0]);
        let carried = b.input(&format!("{name}.x"), F32, dims());
        let (kept, sum) = b.scope(&name, |b| {
            let sum = b.op("Add", &[&carried, &x.value]);
            (b.op("Identity", &[&condition]), b.op("Tanh", &[&sum]))
        });
        b.output(&format!("{name}.kept"), &kept, DataType::Bool, [0usize; 0]);
        b.output(&format!("{name}.y"), &sum, F32, dims());
        let body = Attribute::Graph(Box::new(b.finish().expect("a few nodes").graph));
        let trips = self.b.int(2);
        let always = Initializer::inline(DataType::Bool, &[], vec![1]);
        let always = self.b.initializer("always", always);
        let value = self.b.node("Loop", &[&trips, &always, &x.value]).attr("body", body).out();
        self.push(value, x.shape);
    }

    /// What works on channels: convolutions and norms.
    fn channels(&mut self) -> Option<()> {
        let fits =
            |x: &Known| x.shape.len() == 3 && x.shape[1].number().is_some_and(|n| n > 0) && x.shape[2].number != 0;
        let mut x = self.pick_that(fits)?;
        let channels = x.shape[1].number()?;
        let (scale, bias) = (self.weight(&[channels]), self.weight(&[channels]));
        let value = match self.draws.below(4) {
            0 => {
                let kernel = self.weight(&[3, channels, 3]);
                x.shape[1] = Extent::fixed(3);
                self.b.node("Conv", &[&x.value, &kernel]).attr("pads", vec![1i64, 1]).out()
            }
            1 => self.b.node("InstanceNormalization", &[&x.value, &scale, &bias]).attr("epsilon", 1e-2f32).out(),
            2 => {
                let groups = if channels % 2 == 0 { 2i64 } else { 1 };
                let node = self.b.node("GroupNormalization", &[&x.value, &scale, &bias]).attr("epsilon", 1e-2f32);
                node.attr("num_groups", groups).out()
            }
            _ => {
                let variance = self.b.op("Abs", &[&scale]);
                let node = self.b.node("BatchNormalization", &[&x.value, &scale, &bias, &bias, &variance]);
                node.attr("epsilon", 1e-1f32).out()
            }
        };
        self.push(value, x.shape);
        Some(())
    }

    /// Attention of two heads, of a value to itself or another.
    fn attention(&mut self) -> Option<()> {
        let fits = |x: &Known| x.shape.len() == 3 && x.shape[2].number() == Some(4) && x.shape[1].number != 0;
        let x = self.pick_that(fits)?;
        let other = self.pick_that(|y| fits(y) && y.shape[0] == x.shape[0])?;
        let heads = |maker: &mut Self, of: &Known| {
            let w = maker.weight(&[4, 4]);
            let projected = maker.b.op("MatMul", &[&of.value, &w]);
            let batch = maker.b.extent(&projected, 0);
            let parted = blocks::split_heads(&mut maker.b, &projected, &batch, 2, 2);
            maker.b.transpose(&parted, &[0, 2, 1, 3])
        };
        let (q, k, v) = (heads(self, &x), heads(self, &other), heads(self, &other));
        let mixed = blocks::scaled_dot_product_attention(&mut self.b, &q, &k, &v, Some(0.7), None);
        let turned = self.b.transpose(&mixed, &[0, 2, 1, 3]);
        let value = self.b.reshape(&turned, &[0i64, 0, 4].map(Into::into));
        self.push(value, x.shape);
        Some(())
    }

    /// The pairs of two heads turned by waves of their places, or by a table for either of a pair.
    fn rotation(&mut self) -> Option<()> {
        let fits = |x: &Known| x.shape.len() == 3 && x.shape[2].number() == Some(4) && x.shape[1].number != 0;
        let mut x = self.pick_that(fits)?;
        let w = self.weight(&[4, 8]);
        let projected = self.b.op("MatMul", &[&x.value, &w]);
        let batch = self.b.extent(&projected, 0);
        let parted = blocks::split_heads(&mut self.b, &projected, &batch, 2, 4);
        let heads = self.b.transpose(&parted, &[0, 2, 1, 3]);
        let frequencies = if self.draws.yes() { [1.0, 1.0, 0.1, 0.1] } else { [1.0, 0.7, 0.1, 0.3] };
        let count = self.b.extent(&projected, 1);
        let places = self.b.range(&count);
        let places = self.b.cast(&places, F32);
        let places = self.b.unsqueeze(&places, &[1]);
        let frequencies = self.b.floats(&[4], &frequencies);
        let mut angles = self.b.op("Mul", &[&places, &frequencies]);
        // Tokens in front may be left as they are.
        let leading = self.draws.below(2) as i64;
        if leading > 0 {
            angles = self.b.slice(&angles, 0, leading.into(), i64::MAX.into());
        }
        let (cos, sin) = (self.b.op("Cos", &[&angles]), self.b.op("Sin", &[&angles]));
        let leading = self.b.ints(&[leading]);
        let tables = blocks::RotaryTables::new(&mut self.b, &cos, &sin, &leading, 4);
        let turned = blocks::rotate_interleaved(&mut self.b, &heads, &tables, 4);
        let turned = self.b.transpose(&turned, &[0, 2, 1, 3]);
        let value = self.b.reshape(&turned, &[0i64, 0, 8].map(Into::into));
        x.shape[2] = Extent::fixed(8);
        self.push(value, x.shape);
        Some(())
    }

    /// Declares outputs: the last values, one that reads `x` and `text`, and what `kind` says.
    fn finish(&mut self, kind: Kind, fixed: [Known; 2]) {
        if matches!(kind, Kind::Mixing | Kind::Planted) {
            self.mix(kind == Kind::Mixing);
        }
        let mut values = vec![self.pool.len() - 1];
        for _ in 0..self.draws.below(3) {
            values.push(self.draws.below(self.pool.len()));
        }
        let chosen: Vec<Known> = values.into_iter().map(|at| self.pool[at].clone()).collect();
        let mut made = Vec::new();
        for known in chosen {
            // What is an output itself is in no precomputed graph.
            let half = self.b.float(0.5);
            made.push(Known { value: self.b.op("Mul", &[&known.value, &half]), ..known });
        }
        let [x, text] = fixed;
        let w = self.weight(&[4, 4]);
        let projected = self.b.op("MatMul", &[&text.value, &w]);
        let mean = self.b.node("ReduceMean", &[&projected]).attr("keepdims", 0).out();
        let sum = self.b.op("Add", &[&x.value, &mean]);
        let first = &made[0];
        let value = match broadcast(&x.shape, &first.shape) {
            Some(shape) if shape == x.shape => self.b.op("Mul", &[&sum, &first.value]),
            _ => {
                let mean = self.b.node("ReduceMean", &[&first.value]).attr("keepdims", 0).out();
                self.b.op("Add", &[&sum, &mean])
            }
        };
        made.push(Known { value, shape: x.shape });
        for (at, known) in made.iter().enumerate() {
            let name = format!("y{at}");
            self.b.output(&name, &known.value, F32, dims(&known.shape, &name));
        }
    }

    /// Adds the mean of all rows to a value that has one for each timestep, or the row itself.
    fn mix(&mut self, truly: bool) {
        let rows = Extent::named(ROWS);
        let fits = |x: &Known| x.shape.len() == 2 && x.shape[0] == rows && x.shape[1].number().is_some_and(|n| n > 0);
        let x = self.pick_that(fits).expect("the timesteps' own");
        // Whatever else it is, it is another one for each row.
        let column = self.b.unsqueeze(&"guide".into(), &[1]);
        let x = Known { value: self.b.op("Add", &[&x.value, &column]), ..x };
        let axis = self.b.ints(&[0]);
        let mean = if truly { self.b.op("ReduceMean", &[&x.value, &axis]) } else { self.b.op("Identity", &[&x.value]) };
        let value = self.b.op("Add", &[&x.value, &mean]);
        self.push(value.clone(), x.shape.clone());
        let width = x.shape.last().and_then(Extent::number).unwrap_or(1);
        let w = self.weight(&[width, 4]);
        let value = self.b.op("MatMul", &[&value, &w]);
        let mut shape = x.shape;
        shape.pop();
        shape.push(Extent::fixed(4));
        self.pool.push(Known { value, shape });
    }
}

/// Extents as a graph declares them.
fn dims(shape: &[Extent], of: &str) -> Vec<Dim> {
    let dim = |(axis, extent): (usize, &Extent)| match (&extent.names[..], extent.number) {
        ([], n) => Dim::Fixed(n),
        ([name], 1) => Dim::from(*name),
        _ => Dim::Symbol(format!("{of}_{axis}")),
    };
    shape.iter().enumerate().map(dim).collect()
}
