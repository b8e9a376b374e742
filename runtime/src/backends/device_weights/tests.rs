//! The same sessions over host memory and over what stands for a GPU, whose kernel is the CUDA source compiled for the CPU.

use half::{bf16, f16};
use ndarray::Array2;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use v2l_cuda::Memory;

use super::*;
use crate::engine::EngineError;
use crate::engine::manifest::{RowRange, Slot};
use crate::io::weights::WeightView;
use crate::lora::adapter::LowRank;
use crate::lora::fuse::FuseBase;
use crate::testing::driver::StandInDriver;

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

struct Case {
    rng: ChaCha8Rng,
}

impl Case {
    fn matrix(&mut self, rows: usize, columns: usize, scale: f32) -> Array2<f32> {
        Array2::from_shape_simple_fn((rows, columns), || (self.rng.random::<f32>() - 0.5) * scale)
    }

    fn adapter(&mut self, name: &str, slots: &[Slot], rank: usize) -> Adapter {
        let layer = |slot: &Slot| {
            let down = self.matrix(rank, slot.in_features, 1.0);
            (slot.name.clone(), LowRank { down, up: self.matrix(slot.out_features, rank, 0.1), alpha: 2.0 }.into())
        };
        Adapter { name: name.to_owned(), layers: slots.iter().map(layer).collect() }
    }

    /// Values of about 1, with zeros of both signs, subnormal numbers and ties among them.
    fn weights(&mut self, dtype: Dtype, count: usize) -> Bytes {
        let special = [0.0, -0.0, 1e-39, -3e-6, 6e-8, 1.0 + 1.0 / 256.0, 60000.0];
        let values = (0..count).map(|i| match i % 97 {
            at @ 0..7 => special[at],
            _ => (self.rng.random::<f32>() - 0.5) * 2.0,
        });
        Bytes::from(match dtype {
            Dtype::F16 => values.flat_map(|v| f16::from_f32(v).to_le_bytes()).collect(),
            Dtype::Bf16 => values.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect(),
            _ => values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>(),
        })
    }
}

/// Tensors of one type, each with its slots.
struct Base {
    dtype: Dtype,
    slots: Vec<Slot>,
    tensors: IndexMap<String, (Vec<usize>, Bytes)>,
}

impl FuseBase for Base {
    fn slots(&self) -> &[Slot] {
        &self.slots
    }

    fn base_weight(&self, name: &str) -> Result<WeightView<'_>, EngineError> {
        let (shape, data) = &self.tensors[name];
        Ok(WeightView { dtype: self.dtype, shape, data: data.clone() })
    }
}

impl Base {
    fn new(case: &mut Case, dtype: Dtype, slots: Vec<(Slot, [usize; 2])>) -> Self {
        let mut tensors = IndexMap::new();
        for (slot, [rows, columns]) in &slots {
            let data = case.weights(dtype, rows * columns);
            tensors.entry(slot.tensor.clone()).or_insert_with(|| (vec![*rows, *columns], data));
        }
        Self { dtype, slots: slots.into_iter().map(|(slot, _)| slot).collect(), tensors }
    }

    /// What a device makes of the adapters: every changed tensor's bytes, and the report.
    fn fuse(&self, device: &dyn Device, adapters: &[(&Adapter, f32)]) -> Result<(Vec<Bytes>, FuseReport), FuseError> {
        let by_tensor = by_tensor(self, adapters)?;
        let held: Vec<Block> = by_tensor
            .keys()
            .map(|name| device.hold(self.dtype, self.tensors[*name].1.clone()))
            .collect::<Result<_, _>>()?;
        let tensors: Vec<ToFuse<'_>> = by_tensor
            .iter()
            .zip(&held)
            .map(|((name, slots), base)| ToFuse { name, dtype: self.dtype, shape: &self.tensors[*name].0, base, slots })
            .collect();
        let (blocks, report) = device.fuse(&tensors, None)?;
        Ok((blocks.iter().map(read).collect(), report))
    }
}

/// A block's bytes, wherever they are.
fn read(block: &Block) -> Bytes {
    match block.owner.downcast_ref::<Memory>() {
        Some(memory) => {
            let at = usize::try_from(block.address - memory.address()).unwrap();
            memory.download(at..at + block.length).unwrap().into()
        }
        None => host::bytes(block),
    }
}

fn linear(name: &str, out: usize, inner: usize) -> (Slot, [usize; 2]) {
    (Slot::linear(name, out, inner), [out, inner])
}

/// Rows of a tensor of `total` rows, or columns where it is stored transposed.
fn part_of(
    name: &str,
    (start, end): (usize, usize),
    total: usize,
    inner: usize,
    transposed: bool,
) -> (Slot, [usize; 2]) {
    let rows = Some(RowRange { start, end });
    let slot = Slot { tensor: "shared.weight".into(), rows, transposed, ..Slot::linear(name, end - start, inner) };
    (slot, if transposed { [inner, total] } else { [total, inner] })
}

/// Both devices on one case: bits equal, sums near.
fn compare(base: &Base, adapters: &[(&Adapter, f32)], what: &str) {
    let cuda = Cuda::new(StandInDriver::new());
    let (expected, on_host) = base.fuse(&Host::default(), adapters).unwrap();
    let (found, on_device) = base.fuse(&cuda, adapters).unwrap();
    assert_eq!(found.len(), expected.len());
    for (tensor, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let differ = found.iter().zip(expected).position(|(a, b)| a != b);
        assert!(differ.is_none(), "{what} {}: tensor {tensor} differs from byte {differ:?} on", base.dtype);
    }
    for (device, host) in on_device.slots.iter().zip(&on_host.slots) {
        let (a, b) = (device.rounding, host.rounding);
        // Sums of up to 10⁵ terms in f32, in another order: `Sums` promises 1e-6; squares of rounding errors are not worse.
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-5 * b.abs().max(1e-12);
        assert!(near(a.norm, b.norm) && near(a.dot, b.dot) && near(a.error, b.error), "{what}: {a:?} {b:?}");
        assert_eq!((a.unchanged, &device.slot, device.rank), (b.unchanged, &host.slot, host.rank), "{what}");
    }
    assert_eq!(on_device.slots.len(), on_host.slots.len());
}

#[test]
fn cuda_kernel_gives_the_bits_of_the_cpu_kernels_for_shapes_and_ranks_of_every_kind() {
    let mut case = Case { rng: ChaCha8Rng::seed_from_u64(1) };
    for dtype in DTYPES {
        for (out, inner) in [(1, 1), (5, 7), (33, 256), (129, 264), (40, 257), (130, 520)] {
            for rank in [0, 1, 7, 16, 17, 128] {
                let base = Base::new(&mut case, dtype, vec![linear("layer", out, inner)]);
                let adapter = case.adapter("a", &base.slots, rank);
                compare(&base, &[(&adapter, 0.7)], &format!("[{out}, {inner}] rank {rank}"));
            }
        }
    }
}

#[test]
fn cuda_kernel_gives_the_bits_of_the_cpu_kernels_for_several_adapters_and_slots_at_once() {
    let mut case = Case { rng: ChaCha8Rng::seed_from_u64(2) };
    for dtype in DTYPES {
        let layers = vec![linear("wide", 140, 300), linear("small", 3, 5), linear("flat", 64, 512)];
        let base = Base::new(&mut case, dtype, layers);
        let [a, b, c] = [("a", 4), ("b", 20), ("c", 1)].map(|(name, rank)| case.adapter(name, &base.slots, rank));
        compare(&base, &[(&a, 1.0), (&b, -0.5), (&c, 3.0)], "three adapters");
        let some = case.adapter("some", &base.slots[1..], 3);
        compare(&base, &[(&some, 1.0), (&a, 0.0)], "an adapter of some slots, and one without strength");
    }
}

#[test]
fn cuda_kernel_gives_the_bits_of_the_cpu_kernels_for_rows_and_columns_of_fused_layers() {
    let mut case = Case { rng: ChaCha8Rng::seed_from_u64(3) };
    for dtype in DTYPES {
        for transposed in [false, true] {
            // Rows 40 to 45 belong to nobody.
            let slots = vec![
                part_of("q", (0, 40), 120, 70, transposed),
                part_of("k", (45, 88), 120, 70, transposed),
                part_of("v", (88, 120), 120, 70, transposed),
            ];
            let base = Base::new(&mut case, dtype, slots);
            let all = case.adapter("all", &base.slots, 5);
            let one = case.adapter("one", &base.slots[1..2], 2);
            compare(&base, &[(&all, 1.0), (&one, 0.4)], &format!("transposed {transposed}"));
            compare(&base, &[(&one, 0.4)], &format!("one of three, transposed {transposed}"));
        }
    }
}

#[test]
fn cuda_fuse_beyond_the_range_of_f16_is_an_error_and_leaves_the_memory_for_the_next() {
    let mut case = Case { rng: ChaCha8Rng::seed_from_u64(4) };
    let base = Base::new(&mut case, Dtype::F16, vec![linear("layer", 20, 30)]);
    let mut adapter = case.adapter("a", &base.slots, 1);
    let driver = StandInDriver::new();
    let cuda = Cuda::new(Arc::clone(&driver) as _);
    let [up, down] = [(20, 1), (1, 30)].map(|shape| Array2::from_elem(shape, 300.0));
    adapter.layers["layer"] = LowRank { down, up, alpha: 2.0 }.into();
    assert!(matches!(base.fuse(&cuda, &[(&adapter, 1.0)]), Err(FuseError::Overflow { .. })));
    let kept = driver.held();
    base.fuse(&cuda, &[(&adapter, 1e-6)]).unwrap();
    assert_eq!(driver.held(), kept, "the arena serves again, and nothing else is left");
    drop(cuda);
    assert_eq!(driver.held(), 0);
}

#[test]
fn cuda_fuse_refuses_what_lies_outside_its_memory() {
    let driver: Arc<dyn v2l_cuda::Driver> = StandInDriver::new();
    let base = Memory::of(&driver, &[0; 2 * 12]).unwrap();
    let factors = Memory::of(&driver, &[0; 4 * 7]).unwrap();
    let good = v2l_cuda::Factors { left: 0, left_steps: [1, 1], right: 3, right_steps: [4, 1], rank: 1, factor: 1.0 };
    // 3 rows of 4 columns and a rank of 1: all three memories are filled to the last element.
    let region = |rows, columns, base_at, out_at, stride, pair| {
        let products = vec![pair];
        v2l_cuda::Region { base: &base, base_at, out_at, stride, rows, columns, products }
    };
    let huge = usize::MAX / 2;
    let wrong = [
        region(4, 4, 0, 0, 4, good),
        region(3, 5, 0, 0, 4, good),
        region(3, 4, 1, 0, 4, good),
        region(3, 4, 0, 1, 4, good),
        region(3, 4, 0, 0, 5, good),
        region(3, 4, huge, 0, 4, good),
        region(3, 4, 0, 0, huge, good),
        region(3, 4, 0, 0, 4, v2l_cuda::Factors { left: 5, ..good }),
        region(3, 4, 0, 0, 4, v2l_cuda::Factors { right: 4, ..good }),
        region(3, 4, 0, 0, 4, v2l_cuda::Factors { rank: 2, ..good }),
        region(3, 4, 0, 0, 4, v2l_cuda::Factors { left_steps: [huge, 1], ..good }),
    ];
    let fuse = |region: &v2l_cuda::Region<'_>| {
        let mut out = Memory::new(&driver, 2 * 12).unwrap();
        v2l_cuda::fuse(&driver, v2l_cuda::Element::Bf16, &factors, &mut out, std::slice::from_ref(region))
    };
    fuse(&region(3, 4, 0, 0, 4, good)).unwrap();
    for (case, region) in wrong.iter().enumerate() {
        let error = fuse(region).unwrap_err();
        assert!(matches!(error, v2l_cuda::CudaError::OutOfRange { .. }), "case {case}: {error}");
    }
    assert!(base.download(20..25).is_err() && Memory::new(&driver, 3).unwrap().upload(1, &[0; 3]).is_err());
}

mod sessions {
    use super::*;
    use crate::backends::onnxruntime::tests::{CASES, assert_close, engine, options, run};
    use crate::backends::onnxruntime::{DeviceWeightChoice, OrtEngine};
    use crate::io::weights::read_tensors;
    use crate::options::OpenOptions;
    use crate::tensor::NamedTensors;
    use crate::testing::engines::{LINEARS, fixture, part};

    fn adapter(name: &str, seed: u64) -> Arc<Adapter> {
        let slots = LINEARS.map(|(name, out, inner)| Slot::linear(name, out, inner));
        Arc::new(Case { rng: ChaCha8Rng::seed_from_u64(seed) }.adapter(name, &slots, 2))
    }

    /// On each case: what to open, what goes in, and a device in place of a GPU.
    fn for_each_case(check: impl Fn(Arc<Engine>, &OpenOptions, &NamedTensors, &str)) {
        for (storage, mode) in CASES {
            let case = read_tensors(fixture(&format!("{storage}.safetensors"))).unwrap();
            let (engine, _folder) = engine(&part(&case, "weight."), storage);
            check(engine, &options(mode), &part(&case, "input."), &format!("{storage} {mode:?}"));
        }
    }

    fn on_stand_in(engine: Arc<Engine>, open: &OpenOptions) -> (OrtEngine, Arc<StandInDriver>) {
        let driver = StandInDriver::new();
        let device = Arc::new(Cuda::new(Arc::clone(&driver) as _));
        (OrtEngine::open_on(engine, open, Some(device)).unwrap(), driver)
    }

    #[test]
    fn session_over_device_weights_follows_swaps_and_equals_sessions_over_fused_initializers() {
        for_each_case(|engine, open, inputs, what| {
            let mut over_device = open.clone();
            over_device.ort.device_weights = DeviceWeightChoice::Slots;
            let mut host = OrtEngine::open(Arc::clone(&engine), &over_device).unwrap();
            let (mut device, _) = on_stand_in(Arc::clone(&engine), open);
            assert!(host.has_device_weights() && device.has_device_weights());
            let mut sessions = [host.session("step").unwrap(), device.session("step").unwrap()];
            let bases = [0, 1].map(|device| run(&mut sessions[device], inputs));
            let (a, b) = (adapter("a", 5), adapter("b", 6));
            for adapters in [vec![], vec![(a.clone(), 0.5)], vec![(a.clone(), 1.0), (b, -0.3)], vec![(a, 0.0)], vec![]]
            {
                let mut today = OrtEngine::open(Arc::clone(&engine), open).unwrap();
                today.set_adapters(&adapters, None).unwrap();
                let expected = run(&mut today.session("step").unwrap(), inputs);
                host.set_adapters(&adapters, None).unwrap();
                device.set_adapters(&adapters, None).unwrap();
                let changed = adapters.iter().any(|(_, strength)| *strength != 0.0);
                for (session, base) in sessions.iter_mut().zip(&bases) {
                    let found = run(session, inputs);
                    // Packed and unpacked weights are multiplied in different order.
                    assert_close(&found, &expected, what);
                    assert_eq!(found != *base, changed, "{what}: the base comes back bit for bit");
                }
                assert_eq!(host.report().fused.slots.len(), today.report().fused.slots.len());
            }
        });
    }

    #[test]
    fn session_over_device_weights_is_as_it_was_after_a_failure_anywhere_in_a_swap_and_after_restore() {
        for_each_case(|engine, open, inputs, what| {
            let (mut device, driver) = on_stand_in(engine, open);
            let mut session = device.session("step").unwrap();
            let (a, b) = (adapter("a", 7), adapter("b", 8));
            device.set_adapters(&[(a, 1.0)], None).unwrap();
            let before = run(&mut session, inputs);
            let reported = device.report().fused.clone();
            let mut failures = 0;
            loop {
                *driver.left.lock().unwrap() = Some(failures);
                let swapped = device.set_adapters(&[(b.clone(), 1.0)], None);
                *driver.left.lock().unwrap() = None;
                let Err(error) = swapped else { break };
                assert!(error.to_string().contains("planted"), "{error}");
                assert_eq!(run(&mut session, inputs), before, "{what}: after call {failures} of the driver failed");
                assert_eq!(device.report().fused, reported);
                failures += 1;
            }
            assert!(failures > 10, "every call of a swap was made to fail, {failures} of them");
            let stopped = device.set_adapters(&[(b.clone(), 0.5)], Some(&|| true));
            assert!(matches!(stopped, Err(crate::backends::onnxruntime::OrtError::Fuse(FuseError::Cancelled))));
            let with_b = run(&mut session, inputs);
            assert_ne!(with_b, before);
            let replaced = device.set_adapters(&[], None).unwrap();
            device.restore(replaced);
            assert_eq!(run(&mut session, inputs), with_b, "{what}: restored");
        });
    }
}
