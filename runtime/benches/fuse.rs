//! Time of fusing one square bf16 matrix over the time of copying it, and of adding a full difference to a large matrix over that of
//! copying the matrix.
//!
//! ```text
//! cargo bench -p v2l-runtime --bench fuse -- [--size N] [--rounds N] [--json]
//! ```
//!
//! Every round measures the copy and each case in turn, so that whatever else the machine does meets all alike; a ratio is
//! the median over the rounds of case over copy. *warm*: source and destination were touched before. *fresh*: the
//! destination is memory that the system has yet to provide, for the copy too. Times include laying out the factors.
//! *full*: warm; the copy is of a base of the same type. Needs 1.2 GB of memory.
//! Nothing is asserted.

use std::cell::RefCell;
use std::hint::black_box;
use std::rc::Rc;
use std::time::Instant;

use half::bf16;
use memmap2::{Advice, MmapMut};
use ndarray::Array2;
use serde_json::json;
use v2l_runtime::lora::fuse::{Addend, Packed, Simd};
use v2l_runtime::tensor::Dtype;

const RANKS: [usize; 4] = [1, 4, 16, 128];
/// Of the widest layers of a large transformer.
const FULL: (usize, usize) = (5120, 13824);

struct Options {
    size: usize,
    rounds: usize,
    json: bool,
}

/// `cargo bench` adds `--bench`; anything else that is unknown is an error.
fn options() -> Result<Options, String> {
    let mut options = Options { size: 3072, rounds: 21, json: false };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || {
            let value = arguments.next().and_then(|n| n.parse().ok()).filter(|n| (1..=1 << 15).contains(n));
            value.ok_or(format!("{argument}: expected a number from 1 to 32768"))
        };
        match &argument[..] {
            "--size" => options.size = number()?,
            "--rounds" => options.rounds = number()?,
            "--json" => options.json = true,
            "--bench" => {}
            other => return Err(format!("unknown argument {other}; known are --size N, --rounds N, --json")),
        }
    }
    Ok(options)
}

struct Case {
    name: String,
    /// Cases of one group are compared with its first, the copy.
    group: &'static str,
    run: Box<dyn FnMut() -> f64>,
    seconds: Vec<f64>,
}

fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Numbers in [-0.5, 0.5), the same every time.
fn values(count: usize) -> impl Iterator<Item = f32> {
    let mut state = 1u32;
    (0..count).map(move |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 16_777_216.0 - 0.5
    })
}

fn factors(rank: usize, size: usize) -> (Array2<f32>, Array2<f32>) {
    let matrix = |rows, columns| {
        Array2::from_shape_vec((rows, columns), values(rank * size).collect()).unwrap_or_else(|e| panic!("{e}"))
    };
    (matrix(size, rank), matrix(rank, size))
}

/// Fuses the whole matrix, laying out the factors first.
fn fuse(path: Simd, (up, down): &(Array2<f32>, Array2<f32>), base: &[u8], out: (Dtype, &mut [u8])) {
    let size = up.nrows();
    let product = Addend::Product { left: up.view(), right: down.view(), factor: 0.01 };
    let packed = Packed::new(path, Dtype::Bf16, (size, size), &[product]);
    black_box(packed.fuse(0, 0, size, (Dtype::Bf16, base), out, true));
}

fn fuse_on_two_threads((up, down): &(Array2<f32>, Array2<f32>), base: &[u8], out: &mut [u8]) {
    let size = up.nrows();
    let product = Addend::Product { left: up.view(), right: down.view(), factor: 0.01 };
    let packed = Packed::new(Simd::best(), Dtype::Bf16, (size, size), &[product]);
    let middle = (size / 2).next_multiple_of(packed.block());
    let (low, high) = out.split_at_mut(middle * size * 2);
    let (base_low, base_high) = base.split_at(middle * size * 2);
    let part = |first, base, out| {
        black_box(packed.fuse(first, 0, size, (Dtype::Bf16, base), (Dtype::Bf16, out), true));
    };
    rayon::join(|| part(0, base_low, low), || part(middle, base_high, high));
}

/// Copies of a large matrix in both types, and the sums with a full difference.
fn full_cases(mut add: impl FnMut(String, &'static str, Box<dyn FnMut() -> f64>)) {
    let (rows, columns) = FULL;
    let count = rows * columns;
    let values: &'static [f32] = values(count).collect::<Vec<f32>>().leak();
    let narrow: &'static [u16] = values.iter().map(|&v| bf16::from_f32(v).to_bits()).collect::<Vec<u16>>().leak();
    let difference = Rc::new(Array2::from_shape_fn(FULL, |(i, j)| ((i * 7 + j * 3) % 11) as f32 * 1e-3 - 5e-3));
    let out = Rc::new(RefCell::new(warm_memory(count * size_of::<f32>())));
    let bases: [(&'static str, &'static [u8], Dtype, &[Dtype]); 2] = [
        ("full, f32", bytemuck::cast_slice(values), Dtype::F32, &[Dtype::F32]),
        ("full, bf16", bytemuck::cast_slice(narrow), Dtype::Bf16, &[Dtype::Bf16, Dtype::F32]),
    ];
    for (group, base, dtype, targets) in bases {
        let to = Rc::clone(&out);
        let copy = move || timed(|| black_box(&mut to.borrow_mut()[..base.len()]).copy_from_slice(black_box(base)));
        add(format!("copy {rows}x{columns}"), group, Box::new(copy));
        for &target in targets {
            let (to, difference) = (Rc::clone(&out), Rc::clone(&difference));
            let run = move || {
                let full = Addend::Full { values: difference.view(), factor: 0.5 };
                let (mut to, bytes) = (to.borrow_mut(), count * target.size());
                timed(|| {
                    let packed = Packed::new(Simd::best(), dtype, FULL, &[full]);
                    black_box(packed.fuse(0, 0, columns, (dtype, base), (target, &mut to[..bytes]), true));
                })
            };
            add(format!("full difference {rows}x{columns}, into {target}"), group, Box::new(run));
        }
    }
}

fn fresh_memory(bytes: usize, huge: bool) -> MmapMut {
    let map = MmapMut::map_anon(bytes).unwrap_or_else(|e| panic!("{bytes} bytes: {e}"));
    if huge {
        // As the fuse's own memory.
        let _ = map.advise(Advice::HugePage);
    }
    map
}

fn warm_memory(bytes: usize) -> MmapMut {
    let mut map = fresh_memory(bytes, true);
    map.fill(1);
    map
}

fn main() {
    let options = options().unwrap_or_else(|message| {
        eprintln!("{message}");
        std::process::exit(2);
    });
    let size = options.size;
    let base: &'static [u8] =
        values(size * size).flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect::<Vec<u8>>().leak();
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |name: String, group, run: Box<dyn FnMut() -> f64>| {
        cases.push(Case { name, group, run, seconds: Vec::new() });
    };

    let mut out = warm_memory(base.len());
    add("copy".into(), "warm", Box::new(move || timed(|| black_box(&mut out).copy_from_slice(black_box(base)))));
    for rank in RANKS {
        for path in Simd::available() {
            if path == Simd::Portable && rank > 16 {
                continue;
            }
            let (factors, mut out) = (factors(rank, size), warm_memory(base.len()));
            let run = move || timed(|| fuse(path, &factors, base, (Dtype::Bf16, &mut out)));
            add(format!("rank {rank}, {path:?}"), "warm", Box::new(run));
        }
        let (two, mut out) = (factors(rank, size), warm_memory(base.len()));
        add(
            format!("rank {rank}, 2 threads"),
            "warm",
            Box::new(move || timed(|| fuse_on_two_threads(&two, base, &mut out))),
        );
        let (wide, mut out) = (factors(rank, size), warm_memory(size * size * 4));
        let run = move || {
            let out = (Dtype::F32, &mut out[..]);
            timed(|| fuse(Simd::best(), &wide, base, out))
        };
        add(format!("rank {rank}, into f32"), "warm", Box::new(run));
    }
    add(
        "copy".into(),
        "fresh",
        Box::new(move || timed(|| black_box(&mut fresh_memory(base.len(), false)).copy_from_slice(black_box(base)))),
    );
    for rank in RANKS {
        let factors = factors(rank, size);
        let run =
            move || timed(|| fuse(Simd::best(), &factors, base, (Dtype::Bf16, &mut fresh_memory(base.len(), true))));
        add(format!("rank {rank}, {:?}", Simd::best()), "fresh", Box::new(run));
    }
    full_cases(add);

    for _ in 0..options.rounds {
        for case in &mut cases {
            let seconds = (case.run)();
            case.seconds.push(seconds);
        }
    }

    let machine = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let machine = machine.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown processor");
    let machine = machine.trim_start_matches([' ', '\t', ':']);
    if options.json {
        println!("{}", json!({ "event": "machine", "cpu": machine, "size": size, "rounds": options.rounds }));
    } else {
        println!("{machine}; {size} x {size} bf16, medians of {} rounds", options.rounds);
    }
    for case in &cases {
        let copy = cases.iter().find(|other| other.group == case.group).map_or(&case.seconds, |copy| &copy.seconds);
        let ratio = median(case.seconds.iter().zip(copy).map(|(a, b)| a / b));
        let milliseconds = 1e3 * median(case.seconds.iter().copied());
        if options.json {
            let (name, group, ms) = (&case.name, case.group, milliseconds);
            println!("{}", json!({ "event": "case", "group": group, "case": name, "ms": ms, "ratio": ratio }));
        } else {
            println!("{:<11}{:<38}{milliseconds:>9.3} ms{ratio:>9.2} x copy", case.group, case.name);
        }
    }
}
