//! A model of one GGUF file, or of shards named `NAME-00001-of-0000N.gguf`.

use std::path::{Path, PathBuf};

use unicorn_core::WeightSpan;

use crate::error::ModelError;
use crate::files::{ModelFiles, OpenFile};
use crate::gguf::{Gguf, GgufError, parse, parse_up_to_end};
use crate::read_at::ReadAt;
use crate::tensors::{TensorInfo, TensorTable};

/// Most shards that a model may have; the file name has five digits.
const SHARDS_MAX: u64 = 99_999;

/// All shards of a model. The first carries the metadata.
#[derive(Debug)]
pub(crate) struct GgufModel {
    pub head: Gguf,
    pub files: ModelFiles,
    pub tensors: TensorTable,
}

/// Opens the file, and its siblings when it is a shard.
pub(crate) fn open(path: &Path) -> Result<GgufModel, ModelError> {
    let mut shards = vec![open_one(path)?];
    let count = split_count(&shards[0]).map_err(|source| in_file(path, source))?;
    if count > 1 {
        let given = shards.remove(0);
        shards = open_shards(path, given, count)?;
    }
    assemble(path, shards, count)
}

/// A model of one file or of all its shards, in their order.
pub(crate) fn of_files(files: Vec<OpenFile>) -> Result<GgufModel, ModelError> {
    let path = files.first().map_or(PathBuf::new(), |file| file.path().to_owned());
    let mut shards = Vec::with_capacity(files.len());
    for file in files {
        let gguf = parse(&file).map_err(|source| in_file(file.path(), source))?;
        shards.push((file, gguf));
    }
    let first = shards
        .first()
        .ok_or_else(|| ModelError::NotAModel { path: path.clone(), reason: "there is no file".to_owned() })?;
    let count = split_count(first).map_err(|source| in_file(&path, source))?;
    if shards.len() as u64 != count {
        let number = count.min(shards.len() as u64 + 1);
        return Err(ModelError::MissingShard { path, number, count });
    }
    assemble(&path, shards, count)
}

fn assemble(path: &Path, mut shards: Vec<(OpenFile, Gguf)>, count: u64) -> Result<GgufModel, ModelError> {
    let mut tensors = Vec::new();
    for (i, (file, gguf)) in shards.iter_mut().enumerate() {
        check_split(gguf, i as u64, count).map_err(|source| in_file(file.path(), source))?;
        tensors.extend(gguf.tensors.drain(..).map(|t| TensorInfo {
            name: t.name,
            ty: t.ty,
            shape: t.shape,
            span: WeightSpan { file: i as u32, offset: t.offset, bytes: t.bytes },
        }));
    }
    if let Some(expected) = shards[0].1.int("split.tensors.count").map_err(|source| in_file(path, source))? {
        let found = tensors.len() as u64;
        if found != expected {
            let error = GgufError::Split { key: "the number of tensors in all shards", found, expected };
            return Err(in_file(path, error));
        }
    }
    let tensors =
        TensorTable::new(tensors).map_err(|tensor| in_file(path, GgufError::DuplicateTensor { tensor }))?;
    let mut files = Vec::with_capacity(shards.len());
    let mut heads = Vec::with_capacity(shards.len());
    for (file, gguf) in shards {
        files.push(file);
        heads.push(gguf);
    }
    Ok(GgufModel { head: heads.swap_remove(0), files: ModelFiles::new(files), tensors })
}

fn in_file(path: &Path, source: GgufError) -> ModelError {
    ModelError::Gguf { path: path.to_owned(), source: Box::new(source) }
}

fn open_one(path: &Path) -> Result<(OpenFile, Gguf), ModelError> {
    let file = OpenFile::open(path)?;
    let gguf = parse(&file).map_err(|source| in_file(path, source))?;
    Ok((file, gguf))
}

fn split_count((_, gguf): &(OpenFile, Gguf)) -> Result<u64, GgufError> {
    let count = gguf.int("split.count")?.unwrap_or(1);
    match count {
        0 => Ok(1),
        c if c > SHARDS_MAX => Err(GgufError::Limit { field: "split.count", count: c, limit: SHARDS_MAX }),
        c => Ok(c),
    }
}

fn check_split(gguf: &Gguf, index: u64, count: u64) -> Result<(), GgufError> {
    let number = gguf.int("split.no")?.unwrap_or(index);
    if number != index {
        return Err(GgufError::Split { key: "split.no", found: number, expected: index });
    }
    match gguf.int("split.count")?.unwrap_or(1).max(1) {
        found if found != count => Err(GgufError::Split { key: "split.count", found, expected: count }),
        _ => Ok(()),
    }
}

/// Opens the siblings of `given` one by one; nothing is allocated for shards that are not there.
fn open_shards(
    path: &Path,
    given: (OpenFile, Gguf),
    count: u64,
) -> Result<Vec<(OpenFile, Gguf)>, ModelError> {
    let name = ShardName::parse(path).filter(|n| n.count == count);
    let name = name.ok_or_else(|| in_file(path, GgufError::SplitName { count }))?;
    let mut given = Some(given);
    let mut shards = Vec::new();
    for index in 0..count {
        let shard = match given.take_if(|_| index + 1 == name.number) {
            Some(shard) => shard,
            None => {
                let sibling = name.sibling(path, index + 1);
                if !sibling.exists() {
                    return Err(ModelError::MissingShard { path: sibling, number: index + 1, count });
                }
                open_one(&sibling)?
            }
        };
        shards.push(shard);
    }
    Ok(shards)
}

/// The parts of `STEM-00001-of-00003.gguf`; numbers start at 1.
#[derive(PartialEq, Debug)]
struct ShardName {
    stem: String,
    number: u64,
    count: u64,
}

impl ShardName {
    fn parse(path: &Path) -> Option<ShardName> {
        let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = name.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let digits = |s: &str| (s.len() == 5).then(|| s.parse().ok()).flatten();
        Some(ShardName { stem: stem.to_owned(), number: digits(number)?, count: digits(count)? })
    }

    fn sibling(&self, path: &Path, number: u64) -> PathBuf {
        path.with_file_name(format!("{}-{number:05}-of-{:05}.gguf", self.stem, self.count))
    }
}

/// True for a vision projector, which describes itself as of the architecture `clip`. Files that cannot be read are not: opening
/// them says what is wrong.
pub(crate) fn is_projector(path: &Path) -> bool {
    let Ok(file) = OpenFile::open(path) else { return false };
    let head = parse_up_to_end(&file, file.len()).gguf;
    head.string("general.architecture").ok().flatten().as_deref() == Some("clip")
}

/// True for shards other than the first, which are no models of their own.
pub(crate) fn is_later_shard(path: &Path) -> bool {
    ShardName::parse(path).is_some_and(|n| n.number > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_names() {
        let path = Path::new("/m/a-b-00002-of-00013.gguf");
        let name = ShardName::parse(path).unwrap();
        assert_eq!(name, ShardName { stem: "a-b".into(), number: 2, count: 13 });
        assert_eq!(name.sibling(path, 13), Path::new("/m/a-b-00013-of-00013.gguf"));
        assert!(is_later_shard(path));
        for other in ["a.gguf", "a-1-of-2.gguf", "a-00001-of-00002.bin", "-of-.gguf", "a-+0001-of-00002"] {
            assert_eq!(ShardName::parse(Path::new(other)), None, "{other}");
        }
    }
}
