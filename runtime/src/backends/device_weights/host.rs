//! Host memory, and the CPU's kernels.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::{Block, Device, ToFuse};
use crate::engine::manifest::Hash;
use crate::io::raw::aligned;
use crate::io::weights::WeightView;
use crate::lora::fuse::{
    CancelCheck, Changed, FuseError, FuseOptions, FuseReport, FuseTarget, FusedCache, Pool, fuse_tensors, most_laid_out,
};
use crate::memory::available_memory;
use crate::tensor::Dtype;

/// The machine itself. Fused weights lie in memory that the next but one fuse uses again.
#[derive(Debug, Default)]
pub(in crate::backends) struct Host {
    pool: Pool,
    all: bool,
    /// Where fused weights are kept, and the base that they belong to.
    kept: Option<(FusedCache, Hash)>,
}

impl Host {
    /// With at most this much memory for fused weights, those in use and those being made together; with all weights or only
    /// those of slots.
    pub(in crate::backends) fn new(memory: Option<u64>, all: bool) -> Self {
        let limit = |bytes| Pool::with_limit(usize::try_from(bytes).unwrap_or(usize::MAX));
        Self { pool: memory.map_or_else(Pool::default, limit), all, kept: None }
    }

    /// With fused weights of this base kept in a folder: those that come again are mapped.
    #[cfg(feature = "openvino")]
    pub(in crate::backends) fn keeping(self, cache: Option<FusedCache>, base: &Hash) -> Self {
        Self { kept: cache.map(|cache| (cache, *base)), ..self }
    }
}

fn block(data: Bytes) -> Block {
    Block { address: data.as_ptr().expose_provenance() as u64, length: data.len(), owner: Arc::new(data) }
}

/// The bytes of a block that [`block`] made.
pub(in crate::backends) fn bytes(block: &Block) -> Bytes {
    block.owner.downcast_ref::<Bytes>().cloned().unwrap_or_default()
}

impl Device for Host {
    fn ordinal(&self) -> Option<i32> {
        None
    }

    fn takes_all(&self) -> bool {
        self.all
    }

    fn hold(&self, dtype: Dtype, data: Bytes) -> Result<Block, FuseError> {
        Ok(block(aligned(dtype, data)))
    }

    fn fuse(&self, tensors: &[ToFuse<'_>], cancelled: CancelCheck<'_>) -> Result<(Vec<Block>, FuseReport), FuseError> {
        let needed: usize = tensors.iter().map(|tensor| tensor.base.length).sum();
        let mut changed = Vec::with_capacity(tensors.len());
        for &ToFuse { name, dtype, shape, base, slots } in tensors {
            changed.push(Changed { name, base: WeightView { dtype, shape, data: bytes(base) }, slots });
        }
        let options = FuseOptions { pool: Some(&self.pool), cancelled, ..FuseOptions::new(FuseTarget::Storage) };
        let fuse = || {
            let fresh = needed.saturating_sub(self.pool.free()).saturating_add(most_laid_out(&changed)) as u64;
            if let Some(available) = available_memory().filter(|&available| fresh > available) {
                let source = io::Error::new(io::ErrorKind::OutOfMemory, format!("{available} bytes are available"));
                return Err(FuseError::Memory { needed, source });
            }
            fuse_tensors(&changed, &options)
        };
        let fused = match &self.kept {
            Some((cache, base)) => cache.kept_or(base, &changed, options.target, fuse)?,
            None => fuse()?,
        };
        Ok((fused.weights.into_values().map(block).collect(), fused.report))
    }

    fn settle(&self) -> Result<(), FuseError> {
        Ok(())
    }
}
