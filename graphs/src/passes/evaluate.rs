//! Evaluates one node over constants, for shape arithmetic and small tables.
//!
//! Everything here answers `None` when in doubt: unknown operator or attribute, overflow, division by zero, an operand
//! out of range, a result above 64 KiB. Floating-point results are only given where IEEE 754 leaves no choice.

use super::tensor::{Numbers, Tensor, axis, broadcast, broadcast_sources, result_count, strides, walk};
use super::walk::is_onnx;
use crate::{Attribute, DataType, Initializer, Node};

/// The value of the node's only output, given its inputs (`None` for one that is left out).
pub(super) fn evaluate(node: &Node, inputs: &[Option<&Tensor>]) -> Option<Tensor> {
    if !is_onnx(node) {
        return None;
    }
    let args = Args { node, inputs };
    match node.op_type.as_str() {
        "Constant" => constant(&args),
        "Identity" => args.get(0).cloned(),
        "Cast" => cast(&args),
        "Shape" => shape(&args),
        "Gather" => gather(&args),
        "Concat" => concat(&args),
        "Slice" => slice(&args),
        "Squeeze" => squeeze(&args),
        "Unsqueeze" => unsqueeze(&args),
        "Reshape" => reshape(&args),
        "Transpose" => transpose(&args),
        "Expand" => expand(&args),
        "Range" => range(&args),
        "ConstantOfShape" => constant_of_shape(&args),
        "Neg" => neg(&args),
        "Not" => not(&args),
        "Add" | "Sub" | "Mul" | "Div" | "Mod" => arithmetic(&args),
        "Equal" | "Less" | "Greater" | "LessOrEqual" | "GreaterOrEqual" => compare(&args),
        "And" | "Or" => logic(&args),
        "Min" | "Max" => extremum(&args),
        "Where" => select(&args),
        "ReduceSum" | "ReduceProd" => reduce(&args),
        _ => None,
    }
}

struct Args<'a> {
    node: &'a Node,
    inputs: &'a [Option<&'a Tensor>],
}

impl<'a> Args<'a> {
    fn get(&self, index: usize) -> Option<&'a Tensor> {
        self.inputs.get(index).copied().flatten()
    }

    /// All inputs, if there are `count` of them.
    fn exactly(&self, count: usize) -> Option<Vec<&'a Tensor>> {
        if self.inputs.len() == count { self.inputs.iter().copied().collect() } else { None }
    }

    /// An integer attribute with its default; `None` if it is of another kind.
    fn int(&self, name: &str, default: i64) -> Option<i64> {
        match self.node.attributes.get(name) {
            None => Some(default),
            Some(Attribute::Int(v)) => Some(*v),
            Some(_) => None,
        }
    }

    /// Axes from input `index` or, as older operator sets had it, from the attribute; `Some(None)` if neither is given.
    fn axes(&self, index: usize) -> Option<Option<Vec<i64>>> {
        match (self.get(index), self.node.attributes.get("axes")) {
            (Some(tensor), None) => tensor.indices().map(Some),
            (None, Some(Attribute::Ints(v))) => Some(Some(v.clone())),
            (None, None) => Some(None),
            _ => None,
        }
    }
}

fn constant(args: &Args<'_>) -> Option<Tensor> {
    match args.node.attributes.iter().next()? {
        _ if args.node.attributes.len() != 1 || !args.inputs.is_empty() => None,
        (name, Attribute::Tensor(t)) if name == "value" && !t.external => Tensor::from_initializer(t),
        (name, Attribute::Int(v)) if name == "value_int" => Tensor::ints(&[], &[*v]),
        (name, Attribute::Ints(v)) if name == "value_ints" => Tensor::ints(&[v.len()], v),
        (name, Attribute::Float(v)) if name == "value_float" => floats(vec![], vec![*v]),
        (name, Attribute::Floats(v)) if name == "value_floats" => floats(vec![v.len()], v.clone()),
        _ => None,
    }
}

fn floats(shape: Vec<usize>, values: Vec<f32>) -> Option<Tensor> {
    Tensor::from_numbers(DataType::Float, shape, &Numbers::Float(values))
}

fn cast(args: &Args<'_>) -> Option<Tensor> {
    let [x] = args.exactly(1)?[..] else { return None };
    let to = DataType::from_onnx(i32::try_from(args.node.int("to")?).ok()?)?;
    if to == x.dtype {
        return Some(x.clone());
    }
    if to.is_float() && x.dtype.is_float() {
        return x.converted(to);
    }
    let numbers = match (x.numbers()?, to) {
        (Numbers::Int(v), DataType::Float) => Numbers::Float(v.iter().map(|&n| n as f32).collect()),
        (Numbers::Int(v), DataType::Bool) => Numbers::Bool(v.iter().map(|&n| n != 0).collect()),
        (Numbers::Float(v), DataType::Bool) => Numbers::Bool(v.iter().map(|&n| n != 0.0).collect()),
        (Numbers::Bool(v), DataType::Float) => Numbers::Float(v.iter().map(|&b| f32::from(u8::from(b))).collect()),
        (Numbers::Bool(v), _) => Numbers::Int(v.iter().map(|&b| i64::from(b)).collect()),
        (Numbers::Float(v), _) => {
            // Beyond 2^62 (or NaN) the conversion is not the same everywhere.
            let int = |f: f32| (f.abs() < 4.6e18).then_some(f as i64);
            Numbers::Int(v.into_iter().map(int).collect::<Option<_>>()?)
        }
        (ints @ Numbers::Int(_), _) => ints,
    };
    Tensor::from_numbers(to, x.shape.clone(), &numbers)
}

/// `Shape`'s `start` and `end` as a range of axes.
pub(super) fn shape_range(node: &Node, rank: usize) -> Option<std::ops::Range<usize>> {
    let limit = i64::try_from(rank).ok()?;
    let clamp = |v: i64| (if v < 0 { v.saturating_add(limit) } else { v }).clamp(0, limit) as usize;
    let get = |name: &str, default| match node.attributes.get(name) {
        None => Some(default),
        Some(Attribute::Int(v)) => Some(clamp(*v)),
        Some(_) => None,
    };
    let (start, end) = (get("start", 0)?, get("end", rank)?);
    Some(start..end.max(start))
}

fn shape(args: &Args<'_>) -> Option<Tensor> {
    let [x] = args.exactly(1)?[..] else { return None };
    let extents = &x.shape[shape_range(args.node, x.shape.len())?];
    let values: Vec<i64> = extents.iter().map(|&d| i64::try_from(d).ok()).collect::<Option<_>>()?;
    Tensor::ints(&[values.len()], &values)
}

fn gather(args: &Args<'_>) -> Option<Tensor> {
    let [x, indices] = args.exactly(2)?[..] else { return None };
    let at = axis(args.int("axis", 0)?, x.shape.len())?;
    let rows: Vec<usize> = indices.indices()?.into_iter().map(|i| axis(i, x.shape[at])).collect::<Option<_>>()?;
    let (outer, inner) = (&x.shape[..at], &x.shape[at + 1..]);
    let shape = [outer, &indices.shape[..], inner].concat();
    let count = result_count(&shape, x.dtype)?;
    if count == 0 {
        return x.pick(&[], shape);
    }
    let block: usize = inner.iter().product();
    let blocks: usize = outer.iter().product();
    let mut sources = Vec::with_capacity(count);
    for o in 0..blocks {
        for &row in &rows {
            let start = (o * x.shape[at] + row) * block;
            sources.extend(start..start + block);
        }
    }
    x.pick(&sources, shape)
}

fn concat(args: &Args<'_>) -> Option<Tensor> {
    let parts: Vec<&Tensor> = args.inputs.iter().copied().collect::<Option<_>>()?;
    let first = parts.first()?;
    let at = axis(args.node.int("axis")?, first.shape.len())?;
    let mut shape = first.shape.clone();
    shape[at] = 0;
    for part in &parts {
        let same = |a: usize| a == at || part.shape[a] == first.shape[a];
        if part.dtype != first.dtype || part.shape.len() != shape.len() || !(0..shape.len()).all(same) {
            return None;
        }
        shape[at] = shape[at].checked_add(part.shape[at])?;
    }
    if result_count(&shape, first.dtype)? == 0 {
        return first.pick(&[], shape);
    }
    // One after the other in memory, then picked so that the parts alternate along `axis`.
    let inner: usize = shape[at + 1..].iter().product();
    let outer: usize = shape[..at].iter().product();
    let mut starts = Vec::with_capacity(parts.len());
    let mut total = 0;
    for part in &parts {
        starts.push(total);
        total += part.len();
    }
    let mut sources = Vec::with_capacity(total);
    for o in 0..outer {
        for (part, start) in parts.iter().zip(&starts) {
            let block = part.shape[at] * inner;
            sources.extend(start + o * block..start + (o + 1) * block);
        }
    }
    Tensor::chained(&parts, vec![total])?.pick(&sources, shape)
}

fn slice(args: &Args<'_>) -> Option<Tensor> {
    let (x, starts, ends) = (args.get(0)?, args.get(1)?.indices()?, args.get(2)?.indices()?);
    let n = starts.len();
    let axes = args.get(3).map_or_else(|| Some((0..n as i64).collect()), Tensor::indices)?;
    let steps = args.get(4).map_or_else(|| Some(vec![1; n]), Tensor::indices)?;
    if ends.len() != n || axes.len() != n || steps.len() != n {
        return None;
    }
    let (mut shape, mut strides, mut offset) = (x.shape.clone(), strides(&x.shape), 0i64);
    let mut seen = vec![false; shape.len()];
    for i in 0..n {
        let at = axis(axes[i], shape.len())?;
        if std::mem::replace(&mut seen[at], true) {
            return None;
        }
        let extent = i64::try_from(x.shape[at]).ok()?;
        let step = steps[i];
        let wrap = |v: i64| if v < 0 { v.saturating_add(extent) } else { v };
        let (low, high) = if step > 0 { (0, extent) } else { (-1, extent - 1) };
        let start = wrap(starts[i]).clamp(low.max(0), high.max(0));
        let end = wrap(ends[i]).clamp(low, high.max(low));
        let span = if step > 0 { end - start } else { start - end };
        let step_size = step.checked_abs().filter(|&s| s > 0)?;
        shape[at] = if span <= 0 || extent == 0 { 0 } else { usize::try_from((span - 1) / step_size + 1).ok()? };
        offset = offset.checked_add(start.checked_mul(strides[at])?)?;
        strides[at] = strides[at].checked_mul(step)?;
    }
    result_count(&shape, x.dtype)?;
    x.pick(&walk(&shape, &strides, offset)?, shape)
}

fn squeeze(args: &Args<'_>) -> Option<Tensor> {
    let x = args.get(0)?;
    let drop: Vec<usize> = match args.axes(1)? {
        Some(axes) => axes.into_iter().map(|a| axis(a, x.shape.len())).collect::<Option<_>>()?,
        None => (0..x.shape.len()).filter(|&a| x.shape[a] == 1).collect(),
    };
    if drop.iter().any(|&a| x.shape[a] != 1) {
        return None;
    }
    x.reshaped((0..x.shape.len()).filter(|a| !drop.contains(a)).map(|a| x.shape[a]).collect())
}

fn unsqueeze(args: &Args<'_>) -> Option<Tensor> {
    let x = args.get(0)?;
    let axes = args.axes(1)??;
    let rank = x.shape.len() + axes.len();
    let mut added = vec![false; rank];
    for a in axes {
        if std::mem::replace(&mut added[axis(a, rank)?], true) {
            return None;
        }
    }
    let mut kept = x.shape.iter().copied();
    x.reshaped(added.into_iter().map(|one| if one { Some(1) } else { kept.next() }).collect::<Option<_>>()?)
}

fn reshape(args: &Args<'_>) -> Option<Tensor> {
    let [x, wanted] = args.exactly(2)?[..] else { return None };
    let shape = reshaped_extents(args.node, &wanted.indices()?, &x.shape, x.len())?;
    x.reshaped(shape)
}

/// What `Reshape` makes of `wanted` for an input of `from` with `count` elements.
fn reshaped_extents(node: &Node, wanted: &[i64], from: &[usize], count: usize) -> Option<Vec<usize>> {
    let allow_zero = node.int("allowzero").unwrap_or(0) != 0;
    let mut shape = Vec::with_capacity(wanted.len());
    let mut inferred = None;
    for (at, &extent) in wanted.iter().enumerate() {
        shape.push(match extent {
            0 if !allow_zero => *from.get(at)?,
            -1 if inferred.is_none() => {
                inferred = Some(at);
                1
            }
            n => usize::try_from(n).ok()?,
        });
    }
    if let Some(at) = inferred {
        let rest = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        shape[at] = count.checked_div(rest)?;
    }
    Some(shape)
}

/// The permutation of a `Transpose` of `rank` extents.
pub(super) fn permutation(node: &Node, rank: usize) -> Option<Vec<usize>> {
    let perm: Vec<usize> = match node.attributes.get("perm") {
        None => (0..rank).rev().collect(),
        Some(Attribute::Ints(v)) => v.iter().map(|&a| usize::try_from(a).ok()).collect::<Option<_>>()?,
        Some(_) => return None,
    };
    let mut sorted = perm.clone();
    sorted.sort_unstable();
    sorted.into_iter().eq(0..rank).then_some(perm)
}

fn transpose(args: &Args<'_>) -> Option<Tensor> {
    let [x] = args.exactly(1)?[..] else { return None };
    let perm = permutation(args.node, x.shape.len())?;
    let strides = strides(&x.shape);
    let shape: Vec<usize> = perm.iter().map(|&a| x.shape[a]).collect();
    result_count(&shape, x.dtype)?;
    let strides: Vec<i64> = perm.iter().map(|&a| strides[a]).collect();
    x.pick(&walk(&shape, &strides, 0)?, shape)
}

fn expand(args: &Args<'_>) -> Option<Tensor> {
    let [x, wanted] = args.exactly(2)?[..] else { return None };
    let wanted: Vec<usize> = wanted.indices()?.into_iter().map(|d| usize::try_from(d).ok()).collect::<Option<_>>()?;
    spread(x, &broadcast(&x.shape, &wanted)?)
}

fn spread(x: &Tensor, shape: &[usize]) -> Option<Tensor> {
    result_count(shape, x.dtype)?;
    x.pick(&broadcast_sources(&x.shape, shape)?, shape.to_vec())
}

fn range(args: &Args<'_>) -> Option<Tensor> {
    let [start, limit, delta] = args.exactly(3)?[..] else { return None };
    let scalar = |t: &Tensor| match (t.shape.is_empty() && t.dtype == start.dtype, t.numbers()?) {
        (true, Numbers::Int(v)) => v.first().map(|&n| i128::from(n)),
        _ => None,
    };
    let (first, limit, step) = (scalar(start)?, scalar(limit)?, scalar(delta)?);
    if step == 0 {
        return None;
    }
    let span = if step > 0 { limit - first } else { first - limit };
    let count = if span <= 0 { 0 } else { usize::try_from((span - 1) / step.abs() + 1).ok()? };
    result_count(&[count], start.dtype)?;
    let values: Vec<i64> = (0..count).map(|i| i64::try_from(first + i as i128 * step).ok()).collect::<Option<_>>()?;
    Tensor::from_numbers(start.dtype, vec![count], &Numbers::Int(values))
}

fn constant_of_shape(args: &Args<'_>) -> Option<Tensor> {
    let [wanted] = args.exactly(1)?[..] else { return None };
    let fill = match args.node.attributes.get("value") {
        None => Tensor::from_initializer(&Initializer::inline(DataType::Float, &[1], vec![0; 4])),
        Some(Attribute::Tensor(t)) => Tensor::from_initializer(t),
        Some(_) => None,
    }?;
    let shape: Vec<usize> = wanted.indices()?.into_iter().map(|d| usize::try_from(d).ok()).collect::<Option<_>>()?;
    if fill.len() != 1 {
        return None;
    }
    let count = result_count(&shape, fill.dtype)?;
    fill.pick(&vec![0; count], shape)
}

fn neg(args: &Args<'_>) -> Option<Tensor> {
    let [x] = args.exactly(1)?[..] else { return None };
    let numbers = match x.numbers()? {
        Numbers::Int(v) => Numbers::Int(v.into_iter().map(i64::checked_neg).collect::<Option<_>>()?),
        Numbers::Float(v) => Numbers::Float(v.into_iter().map(|n| -n).collect()),
        Numbers::Bool(_) => return None,
    };
    Tensor::from_numbers(x.dtype, x.shape.clone(), &numbers)
}

fn not(args: &Args<'_>) -> Option<Tensor> {
    let [x] = args.exactly(1)?[..] else { return None };
    let Numbers::Bool(v) = x.numbers()? else { return None };
    Tensor::from_numbers(DataType::Bool, x.shape.clone(), &Numbers::Bool(v.into_iter().map(|b| !b).collect()))
}

/// Both operands broadcast to one shape.
fn pair(args: &Args<'_>) -> Option<(DataType, Vec<usize>, Numbers, Numbers)> {
    let [a, b] = args.exactly(2)?[..] else { return None };
    if a.dtype != b.dtype {
        return None;
    }
    let shape = broadcast(&a.shape, &b.shape)?;
    let (x, y) = (spread(a, &shape)?.numbers()?, spread(b, &shape)?.numbers()?);
    Some((a.dtype, shape, x, y))
}

fn zip<T: Copy, R>(x: &[T], y: &[T], f: impl Fn(T, T) -> Option<R>) -> Option<Vec<R>> {
    x.iter().zip(y).map(|(&a, &b)| f(a, b)).collect()
}

fn arithmetic(args: &Args<'_>) -> Option<Tensor> {
    let (dtype, shape, x, y) = pair(args)?;
    let op = args.node.op_type.as_str();
    let c_modulo = args.int("fmod", 0)? != 0;
    let int = |a: i64, b: i64| match op {
        "Add" => a.checked_add(b),
        "Sub" => a.checked_sub(b),
        "Mul" => a.checked_mul(b),
        "Div" => a.checked_div(b),
        _ if c_modulo => a.checked_rem(b),
        _ => a.checked_rem(b).map(|r| if r != 0 && (r < 0) != (b < 0) { r + b } else { r }),
    };
    let float = |a: f32, b: f32| match op {
        "Add" => Some(a + b),
        "Sub" => Some(a - b),
        "Mul" => Some(a * b),
        "Div" if b != 0.0 => Some(a / b),
        _ => None,
    };
    let numbers = match (x, y) {
        (Numbers::Int(x), Numbers::Int(y)) => Numbers::Int(zip(&x, &y, int)?),
        (Numbers::Float(x), Numbers::Float(y)) => Numbers::Float(zip(&x, &y, float)?),
        _ => return None,
    };
    Tensor::from_numbers(dtype, shape, &numbers)
}

fn compare(args: &Args<'_>) -> Option<Tensor> {
    let (_, shape, x, y) = pair(args)?;
    fn holds<T: PartialOrd + Copy>(op: &str, a: T, b: T) -> bool {
        match op {
            "Equal" => a == b,
            "Less" => a < b,
            "Greater" => a > b,
            "LessOrEqual" => a <= b,
            _ => a >= b,
        }
    }
    let op = args.node.op_type.as_str();
    let result = match (x, y) {
        (Numbers::Int(x), Numbers::Int(y)) => zip(&x, &y, |a, b| Some(holds(op, a, b))),
        (Numbers::Float(x), Numbers::Float(y)) => zip(&x, &y, |a, b| Some(holds(op, a, b))),
        (Numbers::Bool(x), Numbers::Bool(y)) if op == "Equal" => zip(&x, &y, |a, b| Some(a == b)),
        _ => None,
    }?;
    Tensor::from_numbers(DataType::Bool, shape, &Numbers::Bool(result))
}

fn logic(args: &Args<'_>) -> Option<Tensor> {
    let (_, shape, x, y) = pair(args)?;
    let (Numbers::Bool(x), Numbers::Bool(y)) = (x, y) else { return None };
    let and = args.node.op_type == "And";
    let result = zip(&x, &y, |a, b| Some(if and { a && b } else { a || b }))?;
    Tensor::from_numbers(DataType::Bool, shape, &Numbers::Bool(result))
}

fn extremum(args: &Args<'_>) -> Option<Tensor> {
    let mut inputs = args.inputs.iter().copied();
    let mut best = inputs.next()??.clone();
    for next in inputs {
        let (dtype, shape, x, y) = pair(&Args { node: args.node, inputs: &[Some(&best), next] })?;
        let max = args.node.op_type == "Max";
        let numbers = match (x, y) {
            (Numbers::Int(x), Numbers::Int(y)) => {
                Numbers::Int(zip(&x, &y, |a, b| Some(if max { a.max(b) } else { a.min(b) }))?)
            }
            (Numbers::Float(x), Numbers::Float(y)) => Numbers::Float(zip(&x, &y, |a, b| float_extremum(a, b, max))?),
            _ => return None,
        };
        best = Tensor::from_numbers(dtype, shape, &numbers)?;
    }
    Some(best)
}

/// `None` for NaN and for zeros of different sign, which backends order differently.
fn float_extremum(a: f32, b: f32, max: bool) -> Option<f32> {
    match a.partial_cmp(&b)? {
        std::cmp::Ordering::Equal => (a.to_bits() == b.to_bits()).then_some(a),
        std::cmp::Ordering::Less => Some(if max { b } else { a }),
        std::cmp::Ordering::Greater => Some(if max { a } else { b }),
    }
}

fn select(args: &Args<'_>) -> Option<Tensor> {
    let [condition, x, y] = args.exactly(3)?[..] else { return None };
    if x.dtype != y.dtype {
        return None;
    }
    let shape = broadcast(&broadcast(&condition.shape, &x.shape)?, &y.shape)?;
    let Numbers::Bool(chosen) = spread(condition, &shape)?.numbers()? else { return None };
    let (x, y) = (spread(x, &shape)?, spread(y, &shape)?);
    let both = Tensor::chained(&[&x, &y], vec![x.len() + y.len()])?;
    let sources: Vec<usize> = chosen.iter().enumerate().map(|(i, &c)| if c { i } else { x.len() + i }).collect();
    both.pick(&sources, shape)
}

fn reduce(args: &Args<'_>) -> Option<Tensor> {
    let x = args.get(0)?;
    let Numbers::Int(values) = x.numbers()? else { return None };
    let axes = args.axes(1)?.filter(|a| !a.is_empty());
    if axes.is_none() && args.int("noop_with_empty_axes", 0)? != 0 {
        return Some(x.clone());
    }
    let mut reduced = vec![axes.is_none(); x.shape.len()];
    for a in axes.into_iter().flatten() {
        reduced[axis(a, x.shape.len())?] = true;
    }
    let keep = args.int("keepdims", 1)? != 0;
    let ones: Vec<usize> = x.shape.iter().zip(&reduced).map(|(&d, &r)| if r { 1 } else { d }).collect();
    let sum = args.node.op_type == "ReduceSum";
    let mut results = vec![i64::from(!sum); result_count(&ones, x.dtype)?];
    result_count(&x.shape, x.dtype)?;
    for (&value, &target) in values.iter().zip(&broadcast_sources(&ones, &x.shape)?) {
        let result = results.get_mut(target)?;
        *result = if sum { result.checked_add(value)? } else { result.checked_mul(value)? };
    }
    let shape = if keep { ones } else { x.shape.iter().zip(&reduced).filter(|(_, r)| !**r).map(|(&d, _)| d).collect() };
    Tensor::from_numbers(x.dtype, shape, &Numbers::Int(results))
}
