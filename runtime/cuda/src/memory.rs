//! Memory of a device, given back when it is dropped.
#![allow(unsafe_code, reason = "the CUDA driver's API")]

use std::ops::Range;
use std::sync::Arc;

use crate::{CudaError, Driver};

/// Memory of a device.
#[derive(Debug)]
pub struct Memory {
    driver: Arc<dyn Driver>,
    address: u64,
    bytes: usize,
}

impl Memory {
    /// Memory of `bytes` bytes; what it holds is arbitrary.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`] or [`CudaError::Driver`].
    pub fn new(driver: &Arc<dyn Driver>, bytes: usize) -> Result<Self, CudaError> {
        let address = driver.allocate(bytes.max(1))?;
        Ok(Self { driver: Arc::clone(driver), address, bytes })
    }

    /// A copy of `data`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of(driver: &Arc<dyn Driver>, data: &[u8]) -> Result<Self, CudaError> {
        let mut memory = Self::new(driver, data.len())?;
        memory.upload(0, data)?;
        Ok(memory)
    }

    /// Where it is, on the device.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// True if it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The device.
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    /// Writes `data` from byte `at` on.
    ///
    /// # Errors
    /// [`CudaError::OutOfRange`] or [`CudaError::Driver`].
    pub fn upload(&mut self, at: usize, data: &[u8]) -> Result<(), CudaError> {
        let address = self.range("what is written", at, data.len())?;
        // SAFETY: the range was checked, and `self` is borrowed for writing.
        unsafe { self.driver.upload(data, address) }
    }

    /// Reads bytes.
    ///
    /// # Errors
    /// [`CudaError::OutOfRange`] or [`CudaError::Driver`].
    pub fn download(&self, range: Range<usize>) -> Result<Vec<u8>, CudaError> {
        let mut data = vec![0; range.len()];
        let address = self.range("what is read", range.start, data.len())?;
        // SAFETY: the range was checked.
        unsafe { self.driver.download(address, &mut data) }?;
        Ok(data)
    }

    /// Writes all of `from` from byte `at` on.
    ///
    /// # Errors
    /// [`CudaError::OutOfRange`] or [`CudaError::Driver`].
    pub fn copy(&mut self, at: usize, from: &Self) -> Result<(), CudaError> {
        let address = self.range("what is copied", at, from.bytes)?;
        // SAFETY: the range was checked, `self` is borrowed for writing, and allocations do not overlap.
        unsafe { self.driver.copy(from.address, address, from.bytes) }
    }

    /// The address of byte `at`, if `length` bytes from there on lie within.
    pub(crate) fn range(&self, what: &'static str, at: usize, length: usize) -> Result<u64, CudaError> {
        match at.checked_add(length) {
            Some(end) if end <= self.bytes => Ok(self.address + at as u64),
            _ => Err(CudaError::OutOfRange { what, bytes: self.bytes }),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the address came from this driver, and whoever was given it has let go of `self`.
        unsafe { self.driver.release(self.address) };
    }
}
