//! Device weights stay on a device while adapters come and go. Sessions take them as inputs. They are those of slots, or all.
//!
//! The pristine weights are never written to. Adapters are fused from them into memory of their own, which takes their place all at
//! once: a fuse that fails has changed nothing, and without adapters the pristine weights themselves are in use, bit for bit.

mod cuda;
mod host;

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use indexmap::IndexMap;

pub(super) use cuda::Cuda;
pub(super) use host::Host;
#[cfg(feature = "openvino")]
pub(super) use host::bytes;

#[cfg(feature = "openvino")]
use crate::backends::interface::GraphWeight;
use crate::engine::Engine;
use crate::engine::session::Port;
use crate::lora::adapter::Adapter;
use crate::lora::fuse::{CancelCheck, FuseError, FuseReport, SlotTerms, by_tensor};
use crate::tensor::{Dtype, TensorView};

/// Memory of a device, and fusion there.
pub(super) trait Device: fmt::Debug + Send + Sync {
    /// The GPU's number, or `None` for host memory.
    fn ordinal(&self) -> Option<i32>;

    /// True if all weights are inputs. On a GPU they must be: ONNX Runtime passes over initializers in host memory that a GPU is to
    /// use, and looks for their values in the graph's external file, which is empty.
    fn takes_all(&self) -> bool;

    /// Holds a weight of type `dtype`.
    ///
    /// # Errors
    /// [`FuseError::Device`] or [`FuseError::Memory`].
    fn hold(&self, dtype: Dtype, data: Bytes) -> Result<Block, FuseError>;

    /// Fuses all tensors from their pristine weights into memory of their own, in their type; gives them in order.
    ///
    /// # Errors
    /// [`FuseError`]; nothing has then changed.
    fn fuse(&self, tensors: &[ToFuse<'_>], cancelled: CancelCheck<'_>) -> Result<(Vec<Block>, FuseReport), FuseError>;

    /// What was given to [`Self::hold`] can be let go, too: wait until the device has it.
    ///
    /// # Errors
    /// [`FuseError::Device`].
    fn settle(&self) -> Result<(), FuseError>;
}

/// Memory of a device, which stays as long as a clone of this.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// Where it is, in the device's addresses.
    pub(super) address: u64,
    /// Bytes.
    pub(super) length: usize,
    /// What keeps it: the device's own.
    owner: Arc<dyn Any + Send + Sync>,
}

/// A tensor, and what is fused into its slots.
pub(super) struct ToFuse<'a> {
    pub(super) name: &'a str,
    pub(super) dtype: Dtype,
    pub(super) shape: &'a [usize],
    pub(super) base: &'a Block,
    pub(super) slots: &'a [SlotTerms<'a>],
}

/// A pristine weight.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) base: Block,
}

/// An input that a session keeps.
#[derive(Debug)]
pub(super) struct HeldInput {
    pub(super) shape: Vec<usize>,
    pub(super) block: Block,
}

/// What a run is given besides its inputs.
#[derive(Clone, Copy)]
pub struct InUse<'a> {
    /// The weights in use, for sessions that are given any.
    pub(super) weights: Option<&'a State>,
    /// Inputs that runs need not give.
    pub(super) inputs: &'a HashMap<String, HeldInput>,
    /// The GPU that these are on, or `None` for host memory.
    pub(super) ordinal: Option<i32>,
    /// Says when the run is no longer wanted.
    pub(super) cancelled: Option<&'a dyn Fn() -> bool>,
}

impl InUse<'_> {
    /// Those of the ports that a run must give: what is given, and what is not kept.
    pub(super) fn left<'p>(&self, ports: &'p [Port], given: &[(&str, TensorView<'_>)]) -> Vec<&'p Port> {
        let is_given = |port: &Port| given.iter().any(|(name, _)| *name == port.name);
        ports.iter().filter(|port| !self.inputs.contains_key(&port.name) || is_given(port)).collect()
    }
}

/// The weights in use.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Counts the changes: what was computed with other weights is out of date.
    pub(super) generation: u64,
    fused: HashMap<String, Block>,
}

impl State {
    /// A weight with what is fused into it; `None` if the pristine one is in use.
    pub(super) fn fused(&self, name: &str) -> Option<&Block> {
        self.fused.get(name)
    }
}

/// The device weights of an engine.
#[derive(Debug)]
pub(super) struct DeviceWeights {
    device: Arc<dyn Device>,
    held: IndexMap<String, Held>,
    /// Weights that are not held lie in the graphs, and their keeper fuses into them.
    beside_graphs: bool,
    state: RwLock<Arc<State>>,
}

impl DeviceWeights {
    /// Brings the weights of all slots to the device, but for those that are stored in 8 bits, and those of `others` if the device
    /// takes all. `weight` gives a weight's type and bytes, as graphs take it.
    ///
    /// # Errors
    /// [`FuseError::Engine`], [`FuseError::Device`] or [`FuseError::Memory`].
    pub(super) fn new(
        engine: &Engine,
        device: Arc<dyn Device>,
        others: &[&str],
        mut weight: impl FnMut(&str) -> Result<(Dtype, Bytes), FuseError>,
    ) -> Result<Self, FuseError> {
        let mut held = IndexMap::new();
        let slots = engine.manifest().slots.iter().filter(|slot| slot.quantized.is_none());
        let others = if device.takes_all() { others } else { &[] };
        for name in slots.map(|slot| &slot.tensor[..]).chain(others.iter().copied()) {
            if !held.contains_key(name) {
                let shape = engine.weight(name)?.shape.to_vec();
                let (dtype, data) = weight(name)?;
                let base = device.hold(dtype, data)?;
                held.insert(name.to_owned(), Held { dtype, shape, base });
            }
        }
        device.settle()?;
        Ok(Self { device, held, beside_graphs: false, state: RwLock::default() })
    }

    /// Brings weights that belong to no engine to the device.
    ///
    /// # Errors
    /// [`FuseError::Device`] or [`FuseError::Memory`].
    #[cfg(feature = "openvino")]
    pub(super) fn of(device: Arc<dyn Device>, weights: &[&GraphWeight]) -> Result<Self, FuseError> {
        let mut held = IndexMap::new();
        for GraphWeight { name, dtype, shape, data } in weights {
            let base = device.hold(*dtype, data.clone())?;
            held.insert(name.clone(), Held { dtype: *dtype, shape: shape.clone(), base });
        }
        device.settle()?;
        Ok(Self { device, held, beside_graphs: false, state: RwLock::default() })
    }

    /// Leaves what is not held to whoever keeps the graphs that it lies in, in place of refusing adapters for it.
    #[cfg(feature = "openvino")]
    pub(super) fn beside_graphs(self) -> Self {
        Self { beside_graphs: true, ..self }
    }

    /// The device.
    pub(super) fn device(&self) -> &dyn Device {
        &*self.device
    }

    /// A weight that is here.
    pub(super) fn held(&self, name: &str) -> Option<&Held> {
        self.held.get(name)
    }

    /// The weights in use; they stay what they are for as long as the result is kept.
    pub(super) fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where a weight is; `None` if it is not here.
    pub(super) fn block<'a>(&'a self, state: &'a State, name: &str) -> Option<&'a Block> {
        state.fused(name).or_else(|| Some(&self.held.get(name)?.base))
    }

    /// Fuses adapters into the pristine weights and takes them into use. Gives the weights that were in use before.
    ///
    /// # Errors
    /// [`FuseError`]; the weights in use are then the same as before.
    pub(super) fn set_adapters(
        &self,
        engine: &Engine,
        adapters: &[(&Adapter, f32)],
        cancelled: CancelCheck<'_>,
    ) -> Result<(Arc<State>, FuseReport), FuseError> {
        let by_tensor = by_tensor(engine, adapters)?;
        let mut tensors = Vec::with_capacity(by_tensor.len());
        for (name, slots) in &by_tensor {
            // Slots of 8 bits are refused above.
            let Some(Held { dtype, shape, base }) = self.held.get(*name) else {
                if self.beside_graphs {
                    continue;
                }
                return Err(FuseError::InGraph {
                    slot: slots.first().map_or(*name, |(slot, _)| &slot.name).to_owned(),
                });
            };
            tensors.push(ToFuse { name, dtype: *dtype, shape, base, slots });
        }
        let (blocks, report) = if tensors.is_empty() {
            (Vec::new(), FuseReport::default())
        } else {
            self.device.fuse(&tensors, cancelled)?
        };
        let fused = tensors.iter().map(|tensor| tensor.name.to_owned()).zip(blocks).collect();
        Ok((self.install(fused), report))
    }

    /// Takes weights into use again that [`Self::set_adapters`] replaced.
    pub(super) fn restore(&self, before: &State) {
        self.install(before.fused.clone());
    }

    fn install(&self, fused: HashMap<String, Block>) -> Arc<State> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let generation = state.generation + 1;
        std::mem::replace(&mut state, Arc::new(State { generation, fused }))
    }
}

#[cfg(test)]
mod tests;
