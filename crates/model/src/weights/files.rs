//! Safetensors files of a model folder.
//!
//! Tensors are read at their offsets, in pieces and by several threads, and not mapped: a file that is changed or cut
//! short under a mapping would end the process instead of giving an error, and a read goes straight into the memory that
//! the GPU copies from.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use disagg_files as file;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;

use super::TensorSource;
use super::WeightFormat;
use super::digest::{DigestCache, WeightFile, WeightsDigest};
use crate::error::{ModelError, read_bounded};

/// The weights, if they are one file.
pub const SINGLE_FILE: &str = "model.safetensors";
/// What names the files of the weights, if they are several.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// Of a header; the format's own limit.
const HEADER_BYTES_MAX: u64 = 100_000_000;
const INDEX_BYTES_MAX: u64 = 64 << 20;
const SHARDS_MAX: usize = 4096;

/// Bytes that are read at once where two tensors are compared.
const COMPARE_BYTES: usize = 1 << 20;

/// An open safetensors file.
struct Shard {
    name: String,
    path: PathBuf,
    file: File,
    metadata: Metadata,
    /// Offset of the first tensor's bytes.
    data_start: u64,
}

/// The safetensors files of a model: `model.safetensors`, or shards with an index.
pub struct SafetensorsFolder {
    folder: PathBuf,
    /// Sorted by name.
    shards: Vec<Shard>,
    /// Tensor name to index in `shards`.
    tensors: HashMap<String, usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl SafetensorsFolder {
    /// Opens the files and reads their headers.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let names = weight_files(folder)?;
        let mut shards = Vec::with_capacity(names.len());
        let mut tensors = HashMap::new();
        for name in names {
            let shard = Shard::open(folder, name)?;
            for tensor in shard.metadata.offset_keys() {
                if tensors.insert(tensor.clone(), shards.len()).is_some() {
                    return Err(ModelError::Tensor {
                        path: shard.path,
                        tensor,
                        message: "an earlier file has it too".to_owned(),
                    });
                }
            }
            shards.push(shard);
        }
        Ok(Self { folder: folder.to_owned(), shards, tensors })
    }

    /// Begins to hash the files, unless their hashes are known.
    pub(crate) fn digest(&self) -> Result<WeightsDigest, ModelError> {
        let open = |shard: &Shard| {
            let file = shard.file.try_clone().map_err(ModelError::io(&shard.path))?;
            Ok(WeightFile { name: shard.name.clone(), path: shard.path.clone(), file })
        };
        let files = self.shards.iter().map(open).collect::<Result<_, ModelError>>()?;
        WeightsDigest::start(files, DigestCache::of_user().as_ref())
    }
}

/// Names of the files that hold the weights in `folder`, sorted. Whether those that an index names are there is not
/// looked at.
pub fn weight_files(folder: &Path) -> Result<Vec<String>, ModelError> {
    let index = folder.join(INDEX_FILE);
    // What is there and no file is refused when it is opened.
    if folder.join(SINGLE_FILE).exists() {
        Ok(vec![SINGLE_FILE.to_owned()])
    } else if index.exists() {
        shard_names(&index)
    } else {
        Err(ModelError::Missing {
            path: folder.to_owned(),
            message: format!(
                "neither {SINGLE_FILE} nor {INDEX_FILE} is there; weights in other formats have to be converted"
            ),
        })
    }
}

/// The files that an index names, sorted.
fn shard_names(index: &Path) -> Result<Vec<String>, ModelError> {
    let bytes = read_bounded(index, INDEX_BYTES_MAX)?;
    let Index { weight_map } = serde_json::from_slice(&bytes)
        .map_err(|source| ModelError::Json { path: index.to_owned(), source })?;
    let refuse = |message: String| ModelError::WeightsFile { path: index.to_owned(), message };
    let mut names: Vec<String> = weight_map.into_values().collect();
    names.sort();
    names.dedup();
    if names.is_empty() || names.len() > SHARDS_MAX {
        return Err(refuse(format!("names {} files; 1 to {SHARDS_MAX} are accepted", names.len())));
    }
    // Part of a path: must stay within the folder.
    if let Some(name) = names.iter().find(|name| Path::new(name).file_name() != Some(name.as_ref())) {
        return Err(refuse(format!("{name:?} is not a file name")));
    }
    Ok(names)
}

impl Shard {
    fn open(folder: &Path, name: String) -> Result<Self, ModelError> {
        let path = folder.join(&name);
        let file = file::open(&path)?;
        let size = file.metadata().map_err(ModelError::io(&path))?.len();
        let refuse = |message: String| ModelError::WeightsFile { path: path.clone(), message };
        let mut length = [0; 8];
        if size < 8 {
            return Err(refuse(format!("{size} bytes are too few for a safetensors file")));
        }
        file.read_exact_at(&mut length, 0).map_err(ModelError::io(&path))?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > HEADER_BYTES_MAX.min(size - 8) {
            return Err(refuse(format!(
                "a header of {header_bytes} bytes does not fit; the file is damaged"
            )));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact_at(&mut header, 8).map_err(ModelError::io(&path))?;
        // Checks that offsets are in order, without gaps, and fit shapes and dtypes.
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|source| ModelError::Json { path: path.clone(), source })?;
        let data_start = 8 + header_bytes;
        let want = data_start + metadata.data_len() as u64;
        if size != want {
            return Err(refuse(format!("{size} bytes, but its header describes {want}; was it cut short?")));
        }
        Ok(Self { name, path, file, metadata, data_start })
    }

    fn read_at(&self, offset: usize, out: &mut [u8]) -> Result<(), ModelError> {
        self.file.read_exact_at(out, self.data_start + offset as u64).map_err(ModelError::io(&self.path))
    }
}

impl SafetensorsFolder {
    /// Names of all tensors.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.tensors.keys()
    }

    /// Whether some file has the tensor.
    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Whether two tensors, which must be there, are the same: dtype, shape and bytes.
    pub(super) fn equal(&self, one: &str, other: &str) -> Result<bool, ModelError> {
        let find = |name: &str| {
            let shard = self.tensors.get(name).map(|&shard| &self.shards[shard]);
            shard.and_then(|shard| Some((shard, shard.metadata.info(name)?)))
        };
        let (Some((one, one_info)), Some((other, other_info))) = (find(one), find(other)) else {
            return Ok(false);
        };
        if one_info.dtype != other_info.dtype || one_info.shape != other_info.shape {
            return Ok(false);
        }
        let ((start, end), other_start) = (one_info.data_offsets, other_info.data_offsets.0);
        let mut buffers = [vec![0; COMPARE_BYTES], vec![0; COMPARE_BYTES]];
        for offset in (0..end - start).step_by(COMPARE_BYTES) {
            let length = COMPARE_BYTES.min(end - start - offset);
            let [left, right] = &mut buffers;
            one.read_at(start + offset, &mut left[..length])?;
            other.read_at(other_start + offset, &mut right[..length])?;
            if left[..length] != right[..length] {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What the header says of a tensor. An error if it is not there or has another shape.
    pub(super) fn info(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo, ModelError> {
        let info = self.tensors.get(name).and_then(|&shard| self.shards[shard].metadata.info(name));
        let info = info.ok_or_else(|| self.missing(name))?;
        if info.shape != shape {
            let message = format!("has shape {:?}; config.json asks for {shape:?}", info.shape);
            return Err(self.refuse(name, message));
        }
        Ok(info)
    }

    fn missing(&self, name: &str) -> ModelError {
        self.refuse(name, "missing in all safetensors files".to_owned())
    }

    /// An error about a tensor, with the file that has it.
    pub(super) fn refuse(&self, name: &str, message: String) -> ModelError {
        let path = self.tensors.get(name).map_or(&self.folder, |&shard| &self.shards[shard].path);
        ModelError::Tensor { path: path.clone(), tensor: name.to_owned(), message }
    }
}

impl TensorSource for SafetensorsFolder {
    fn format(&self, name: &str, shape: &[usize]) -> Result<WeightFormat, ModelError> {
        match self.info(name, shape)?.dtype {
            Dtype::F32 => Ok(WeightFormat::F32),
            Dtype::BF16 => Ok(WeightFormat::Bf16),
            Dtype::F16 => Ok(WeightFormat::F16),
            other => Err(self.refuse(name, format!("dtype {other} is not supported; F32, BF16 and F16 are"))),
        }
    }

    fn read(&self, name: &str, offset: usize, out: &mut [u8]) -> Result<(), ModelError> {
        let shard = self.tensors.get(name).map(|&shard| &self.shards[shard]);
        let found = shard.and_then(|shard| Some((shard, shard.metadata.info(name)?)));
        let (shard, info) = found.ok_or_else(|| self.missing(name))?;
        shard.read_at(info.data_offsets.0 + offset, out)
    }
}

impl std::fmt::Debug for SafetensorsFolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SafetensorsFolder")
            .field("folder", &self.folder)
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}
