//! Reading an adapter's file against the slots of a component.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use indexmap::IndexMap;
use ndarray::{Array2, s};

use super::coverage::ReadOptions;
use super::experts::{Route, place};
use super::keys::{self, Key, KeyPart};
use super::light;
use super::names::{Layers, Piece, SlotNames, Target, Targets};
use super::parts::{CoveredAdapter, alpha, as_matrix, flattened, locate, matrix, mismatch, name_of, scale_config};
use super::scale::ScaleConfig;
use super::{Adapter, AdapterError, AdapterFormat, Coverage, KeyOutcome, LowRank, Outcome, Placed, Update};
use crate::io::weights::WeightFile;
use crate::io::wrappers::unwrapped;

/// The header's entry, in files that v2l writes, for keys that do not spell a slot's own name: a JSON object from what stands before
/// a key's part to the slot.
pub(super) const WRITTEN_SLOTS: &str = "v2l.slots";

/// Reads an adapter in any form but [`AdapterFormat::Light`]: a file, or a folder with `adapter_config.json`.
///
/// A module that is a fused layer of several slots (`to_qkv` of `to_q`, `to_k`, `to_v`), or a part of one, changes the rows
/// that are its own. Wan's own layer names stand for those of diffusers.
///
/// For a model with two transformers it is for those that `options` say; else for those that its keys name, where some begin with
/// `transformer_2.`; else for that which its name says; else for `transformer` where its keys begin with that, as diffusers has it; else
/// for both.
///
/// # Errors
/// [`AdapterError`]; [`AdapterError::Unmatched`] carries the coverage if keys match no slot and `allow_partial` is off.
pub fn read_adapter<'a>(
    path: &Path,
    targets: impl Into<Targets<'a>>,
    options: &ReadOptions,
) -> Result<CoveredAdapter, AdapterError> {
    let layers = match targets.into() {
        Targets::One(_) if options.experts.is_some() => {
            return Err(AdapterError::OneTransformer { path: path.to_owned() });
        }
        Targets::One(layers) => {
            return read_for(&WeightFile::open(locate(path)?)?, &[(Route::ONLY, layers)], options, None);
        }
        Targets::Two(layers) => layers,
    };
    let file = WeightFile::open(locate(path)?)?;
    let (placed, routes) = place(path, &file.names(), options.experts);
    let parts: Vec<_> = routes.into_iter().map(|route| (route, layers[route.index()])).collect();
    read_for(&file, &parts, options, Some(placed))
}

/// Reads a file for these transformers, each with the way its keys are read for it; at least one.
fn read_for(
    file: &WeightFile,
    parts: &[(Route, Layers<'_>)],
    options: &ReadOptions,
    placed: Option<Placed>,
) -> Result<CoveredAdapter, AdapterError> {
    match (light::kind(file), parts) {
        (None, _) => {}
        (Some(AdapterFormat::LightFull), &[(Route::ONLY, layers)]) => return light::read_full(file, layers, options),
        (Some(_), _) => return Err(AdapterError::NeedsPredictor { path: file.path().to_owned() }),
    }
    let mut readers = Vec::with_capacity(parts.len());
    let mut coverage: Option<Coverage> = None;
    for &(route, layers) in parts {
        let (reader, found) = survey(file, route, layers)?;
        readers.push((route, reader));
        coverage = Some(match coverage {
            Some(before) => before.and(found),
            None => found,
        });
    }
    let Some(coverage) = coverage else { unreachable!("there is at least one transformer") };
    let coverage = Coverage { placed, ..coverage }.accept(options)?;
    let mut layers = IndexMap::new();
    for (route, reader) in readers {
        layers.extend(reader.finish()?.into_iter().map(|(slot, update)| (route.name(slot), update)));
    }
    Ok(CoveredAdapter { adapter: Adapter { name: name_of(file.path()), layers }, coverage })
}

/// What a file's keys stand for in one transformer, and what becomes of them.
fn survey<'a>(file: &'a WeightFile, route: Route, layers: Layers<'a>) -> Result<(Reader<'a>, Coverage), AdapterError> {
    let (config, scale) = scale_config(file.path(), file, route.metadata())?;
    let mut reader = Reader {
        file,
        names: SlotNames::new(layers),
        written: written_slots(file, route),
        route,
        config,
        modules: IndexMap::new(),
        keys: Vec::new(),
        unknown: Vec::new(),
        format: None,
    };
    for key in file.names() {
        reader.key(key)?;
    }
    let pieces = reader.modules.values().flat_map(|(target, _)| target.pieces());
    let live = pieces.filter(|piece| reader.names.absent(piece.slot).is_none());
    let covered: HashSet<&str> = live.map(|piece| &piece.slot.name[..]).collect();
    let parameters = layers.parameters.iter().filter(|parameter| covered.contains(&parameter.name[..])).count();
    let both = reader.modules.iter().filter(|(_, (_, parts))| parts.difference.is_some() && parts.down.is_some());
    let both = both.map(|(slot, _)| {
        format!("`{slot}` has factors and a full difference: both are added, as LightX2V does; ComfyUI applies the difference alone")
    });
    let coverage = Coverage {
        file: file.path().to_owned(),
        format: reader.format.unwrap_or(AdapterFormat::Bare),
        scale,
        keys: std::mem::take(&mut reader.keys),
        slots_covered: covered.len() - parameters,
        slots_total: layers.slots.len(),
        parameters_covered: parameters,
        notes: both.collect(),
        placed: None,
        hint: reader.names.hint(&reader.unknown),
    };
    Ok((reader, coverage))
}

/// What a file that v2l wrote says of its keys: what stands before their parts, and the slot. Nothing of another file.
fn written_slots(file: &WeightFile, route: Route) -> HashMap<String, String> {
    let written: Option<HashMap<String, String>> =
        file.metadata(WRITTEN_SLOTS).and_then(|text| serde_json::from_str(text).ok());
    let own = |(stem, slot): (String, String)| Some((route.spelled(&stem).ok()?.into_owned(), route.own(slot)));
    written.into_iter().flatten().filter_map(own).collect()
}

/// How a file spells its keys, by the first key that says.
///
/// # Errors
/// As [`WeightFile::open`]; [`AdapterError::Unsupported`] or [`AdapterError::Config`] if no key is an adapter's.
pub fn detect(path: &Path) -> Result<AdapterFormat, AdapterError> {
    let path = locate(path)?;
    let file = WeightFile::open(&path)?;
    if let Some(format) = light::kind(&file) {
        return Ok(format);
    }
    let form = |key: &String| match keys::parse(&unwrapped(key)) {
        Key::LoRa { format, .. } => Some(format),
        _ => None,
    };
    let names = file.names();
    let other = |key: &String| match keys::parse(&unwrapped(key)) {
        Key::Other(kind) => Some(AdapterError::Unsupported { path: path.clone(), key: key.clone(), kind }),
        _ => None,
    };
    names.iter().find_map(form).ok_or_else(|| {
        names.iter().find_map(other).unwrap_or_else(|| AdapterError::Config {
            path: path.clone(),
            reason: "no key is an adapter's, such as `….lora_A.weight`; is this the checkpoint of a whole model?"
                .into(),
        })
    })
}

/// What a file holds for one of its modules.
#[derive(Default)]
struct FoundParts {
    module: String,
    down: Option<(String, Array2<f32>)>,
    up: Option<(String, Array2<f32>)>,
    alpha: Option<f32>,
    /// What is added to the whole of it, without alpha.
    difference: Option<(String, Array2<f32>)>,
}

/// An update of some of a slot's output features.
struct RowUpdate {
    /// Key of the up factor.
    key: String,
    first_row: usize,
    update: Update,
}

struct Reader<'a> {
    file: &'a WeightFile,
    names: SlotNames<'a>,
    written: HashMap<String, String>,
    route: Route,
    config: Option<ScaleConfig>,
    /// By what the module stands for, in words.
    modules: IndexMap<String, (Target<'a>, FoundParts)>,
    keys: Vec<KeyOutcome>,
    /// Modules that are no slots, each once.
    unknown: Vec<String>,
    format: Option<AdapterFormat>,
}

/// What a key stands for.
struct Named<'a> {
    format: AdapterFormat,
    module: String,
    part: KeyPart,
    target: Target<'a>,
}

/// Why a key stands for nothing.
enum Unnamed {
    /// It is part of an update of another kind.
    Kind(&'static str),
    /// It is no adapter's.
    Unknown,
    /// The model has no such layer.
    NoLayer { format: AdapterFormat, module: String, reason: String },
}

impl<'a> Reader<'a> {
    /// What a key of this spelling stands for.
    fn named(&self, spelled: &str) -> Result<Named<'a>, Unnamed> {
        let (format, module, stem, part) = match keys::parse(spelled) {
            Key::LoRa { format, module, stem, part } => (format, module, stem, part),
            Key::Other(kind) => return Err(Unnamed::Kind(kind)),
            Key::Unknown => return Err(Unnamed::Unknown),
        };
        // What is written there is whose weight it is.
        let written = self.written.get(stem).filter(|_| part.is_of_weight()).and_then(|slot| self.names.exact(slot));
        if let Some(target) = written {
            return Ok(Named { format, module: keys::unprefixed(stem).0.to_owned(), part, target });
        }
        match self.names.resolve((format, &module), stem, part) {
            Ok((format, module, target)) => Ok(Named { format, module: module.into_owned(), part, target }),
            Err(reason) => Err(Unnamed::NoLayer { format, module: module.into_owned(), reason }),
        }
    }

    fn key(&mut self, key: String) -> Result<(), AdapterError> {
        let path = || self.file.path().to_owned();
        let spelled = match self.route.spelled(&key) {
            Ok(spelled) => spelled.into_owned(),
            Err(reason) => {
                let outcome = Outcome::Ignored { reason: reason.to_owned() };
                self.keys.push(KeyOutcome { key, outcome });
                return Ok(());
            }
        };
        let named = match self.named(&spelled) {
            Err(first) => match unwrapped(&spelled) {
                Cow::Owned(plain) => self.named(&plain).map_err(|_| first),
                Cow::Borrowed(_) => Err(first),
            },
            found => found,
        };
        let Named { format, module, part, target } = match named {
            Ok(named) => named,
            Err(Unnamed::Kind(kind)) => return Err(AdapterError::Unsupported { path: path(), key, kind }),
            Err(Unnamed::Unknown) => {
                self.keys.push(KeyOutcome { key, outcome: Outcome::Error { reason: "no adapter's key".to_owned() } });
                return Ok(());
            }
            Err(Unnamed::NoLayer { format, module, reason }) => {
                self.format.get_or_insert(format);
                if self.unknown.last().is_none_or(|last| *last != module) {
                    self.unknown.push(module);
                }
                self.keys.push(KeyOutcome { key, outcome: Outcome::Error { reason } });
                return Ok(());
            }
        };
        self.format.get_or_insert(format);
        let outcome = self.names.outcome(&target);
        if matches!(outcome, Outcome::Error { .. }) {
            self.keys.push(KeyOutcome { key, outcome });
            return Ok(());
        }
        let outcome = match outcome {
            Outcome::Applied { slot } => Outcome::Applied { slot: self.route.name(slot) },
            other => other,
        };
        let slot = target.describe();
        let is_parameter = matches!(&target, Target::Whole(slot) if slot.name == slot.tensor);
        let (_, parts) = self.modules.entry(slot.clone()).or_insert_with(|| (target, FoundParts::default()));
        let taken = match part {
            KeyPart::Down => parts.down.is_some(),
            KeyPart::Up => parts.up.is_some(),
            KeyPart::Alpha => parts.alpha.is_some(),
            KeyPart::Difference | KeyPart::BiasDifference | KeyPart::ModulationDifference => parts.difference.is_some(),
        };
        if taken {
            let found = format!("a second one for `{slot}`");
            return Err(mismatch(self.file, &key, "one key of this kind for the slot", found));
        }
        match part {
            KeyPart::Alpha => parts.alpha = Some(alpha(self.file, &key)?),
            // A convolution's factor is flattened as its weight is.
            KeyPart::Down if is_parameter => parts.down = Some((key.clone(), flattened(self.file, &key)?)),
            KeyPart::Down => parts.down = Some((key.clone(), matrix(self.file, &key)?)),
            KeyPart::Up => parts.up = Some((key.clone(), matrix(self.file, &key)?)),
            KeyPart::Difference | KeyPart::BiasDifference | KeyPart::ModulationDifference => {
                let scale = bias_scale(self.file, self.config.as_ref(), &module, &key);
                parts.difference = Some((key.clone(), as_matrix(self.file, &key)? * scale));
            }
        }
        if parts.module.is_empty() {
            parts.module = module;
        }
        self.keys.push(KeyOutcome { key, outcome });
        Ok(())
    }

    /// Pairs the factors, and gives every slot what is its own.
    fn finish(self) -> Result<IndexMap<String, Arc<Update>>, AdapterError> {
        let mut slots: IndexMap<&'a str, (usize, Vec<RowUpdate>)> = IndexMap::new();
        for (target, parts) in self.modules.into_values() {
            let pieces = target.pieces();
            let (key, update) = update(self.file, self.config.as_ref(), &pieces, parts)?;
            let mut push = |piece: &Piece<'a>, update| {
                if self.names.absent(piece.slot).is_some() {
                    return;
                }
                let (_, updates) =
                    slots.entry(&piece.slot.name).or_insert_with(|| (piece.slot.out_features, Vec::new()));
                updates.push(RowUpdate { key: key.clone(), first_row: piece.to, update });
            };
            if let [piece] = &pieces[..] {
                push(piece, update);
                continue;
            }
            for piece in &pieces {
                let rows = s![piece.from..piece.from + piece.rows, ..];
                let part = match &update {
                    Update::LowRank(LowRank { down, up, alpha }) => {
                        LowRank { down: down.clone(), up: up.slice(rows).to_owned(), alpha: *alpha }.into()
                    }
                    Update::Full(difference) => Update::Full(difference.slice(rows).to_owned()),
                };
                push(piece, part);
            }
        }
        let merge =
            |(name, (rows, updates))| Ok((String::from(name), Arc::new(merge(self.file, name, rows, updates)?)));
        slots.into_iter().map(merge).collect()
    }
}

/// What PEFT multiplies the bias of its up factor by: `alpha / rank` of the layer, where its configuration is there; 1 of any other key.
fn bias_scale(file: &WeightFile, config: Option<&ScaleConfig>, module: &str, key: &str) -> f32 {
    let up = key.strip_suffix(".bias").map(|stem| format!("{stem}.weight"));
    let rank = up.and_then(|up| file.shape(&up).and_then(|shape| shape.get(1).copied()));
    match (config, rank) {
        (Some(config), Some(rank)) if rank > 0 => config.alpha(module, rank) / rank as f32,
        _ => 1.0,
    }
}

/// What is added to a module: the product of its factors, a full difference, or both; and a key of it.
fn update(
    file: &WeightFile,
    config: Option<&ScaleConfig>,
    pieces: &[Piece<'_>],
    mut parts: FoundParts,
) -> Result<(String, Update), AdapterError> {
    let Some((key, values)) = parts.difference.take() else {
        let (key, factors) = pair(file, config, pieces, parts)?;
        return Ok((key, factors.into()));
    };
    let rows = pieces.iter().map(|piece| piece.rows).sum::<usize>();
    let columns = pieces.first().map_or(0, |piece| piece.slot.in_features);
    if values.dim() != (rows, columns) {
        return Err(mismatch(file, &key, &format!("[{rows}, {columns}]"), format!("{:?}", values.shape())));
    }
    let whole = Update::Full(values);
    if parts.down.is_none() && parts.up.is_none() {
        return Ok((key, whole));
    }
    let (_, low_rank) = pair(file, config, pieces, parts)?;
    let both = low_rank.joined(&whole.to_low_rank());
    both.map(|both| (key.clone(), both.into()))
        .ok_or_else(|| mismatch(file, &key, "the shape of the factors' product", format!("[{rows}, {columns}]")))
}

/// The update that a module's factors make, checked against what it stands for; and the key of its up factor.
fn pair(
    file: &WeightFile,
    config: Option<&ScaleConfig>,
    pieces: &[Piece<'_>],
    parts: FoundParts,
) -> Result<(String, LowRank), AdapterError> {
    let (down_key, down, up_key, up) = match (parts.down, parts.up) {
        (Some((down_key, down)), Some((up_key, up))) => (down_key, down, up_key, up),
        (Some((key, _)), None) => return Err(mismatch(file, &key, "its up factor too", "none".to_owned())),
        (None, Some((key, _))) => return Err(mismatch(file, &key, "its down factor too", "none".to_owned())),
        (None, None) => {
            return Err(mismatch(file, &format!("{}.alpha", parts.module), "factors too", "none".to_owned()));
        }
    };
    let (rank, out_features) = (down.nrows(), pieces.iter().map(|piece| piece.rows).sum::<usize>());
    let in_features = pieces.first().map_or(0, |piece| piece.slot.in_features);
    if down.ncols() != in_features {
        return Err(mismatch(file, &down_key, &format!("[rank, {in_features}]"), format!("{:?}", down.shape())));
    }
    if up.dim() != (out_features, rank) {
        return Err(mismatch(file, &up_key, &format!("[{out_features}, {rank}]"), format!("{:?}", up.shape())));
    }
    if let Some(expected) = config.and_then(|config| config.rank(&parts.module)).filter(|&expected| expected != rank) {
        let expected = format!("rank {expected}, as the configuration says");
        return Err(mismatch(file, &down_key, &expected, format!("rank {rank}")));
    }
    let configured = || config.map(|config| config.alpha(&parts.module, rank));
    let alpha = parts.alpha.or_else(configured).unwrap_or(rank as f32);
    Ok((up_key, LowRank { down, up, alpha }))
}

/// One update of a slot with `rows` output features from updates of some of them. Of full differences it has each one's rows, and zeros
/// elsewhere. Of factors it has ranks side by side: `up` has each one's factor in its own rows and columns and zeros elsewhere, `down`
/// has all factors.
fn merge(file: &WeightFile, slot: &str, rows: usize, mut updates: Vec<RowUpdate>) -> Result<Update, AdapterError> {
    updates.sort_by_key(|update| update.first_row);
    let overlap = updates.windows(2).find(|pair| pair[1].first_row < pair[0].first_row + pair[0].update.dim().0);
    if let Some([_, second]) = overlap {
        let found = format!("another one of the same rows of `{slot}`");
        return Err(mismatch(file, &second.key, "one update of each row", found));
    }
    if updates.len() == 1 && updates[0].update.dim().0 == rows {
        return Ok(updates.swap_remove(0).update);
    }
    let columns = updates.first().map_or(0, |update| update.update.dim().1);
    if let Some(wrong) = updates.iter().find(|update| update.update.dim().1 != columns) {
        let found = format!("{} columns", wrong.update.dim().1);
        return Err(mismatch(file, &wrong.key, &format!("{columns} columns, as the others have"), found));
    }
    if updates.iter().all(|update| update.update.factors().is_none()) {
        let mut difference = Array2::zeros((rows, columns));
        for RowUpdate { first_row, update, .. } in &updates {
            for values in update.matrices() {
                difference.slice_mut(s![*first_row..first_row + values.nrows(), ..]).assign(values);
            }
        }
        return Ok(Update::Full(difference));
    }
    let factors: Vec<(usize, Cow<'_, LowRank>)> =
        updates.iter().map(|update| (update.first_row, update.update.to_low_rank())).collect();
    let rank = factors.iter().map(|(_, factors)| factors.rank()).sum();
    let scale = factors.first().map_or(1.0, |(_, factors)| factors.scale());
    let equal = factors.iter().all(|(_, factors)| factors.scale() == scale);
    let mut up = Array2::zeros((rows, rank));
    let mut down = Array2::zeros((rank, columns));
    let mut at = 0;
    for (first_row, part) in &factors {
        let ranks = at..at + part.rank();
        let mut block = up.slice_mut(s![*first_row..first_row + part.up.nrows(), ranks.clone()]);
        // Of unequal scales none can stay outside.
        block.assign(&(&part.up * if equal { 1.0 } else { part.scale() }));
        down.slice_mut(s![ranks, ..]).assign(&part.down);
        at += part.rank();
    }
    Ok(LowRank { down, up, alpha: if equal { scale * rank as f32 } else { rank as f32 } }.into())
}
