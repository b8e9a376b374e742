use std::path::Path;
use crate::ExportError;
pub(crate) struct ConvertedTokenizer { pub(crate) json: Vec<u8>, pub(crate) pad_id: u32 }
pub(crate) fn convert(_folder: &Path) -> Result<Option<ConvertedTokenizer>, ExportError> { Ok(None) }
