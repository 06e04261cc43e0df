//! `[[group]]`: which optimiser moves which weight, and the groups that stand behind those of a recipe.

use nucleus_ir::DType;

use super::ComputeDType;
use super::error::RecipeError;
use super::reader::Table;
use super::sections::POSITIVE;
use crate::groups::{AdamW, AdjustLr, Group, Halves, Muon, NsForm, Optimizer};

/// Muon for attention and feed-forward matrices, AdamW for the rest. Modulation is left to AdamW on purpose: its matrices scale whole
/// residual branches by the timestep.
const MUON_WEIGHTS: &[&str] = &[
    "*.attn.to_*.weight",
    "*.attn.add_*_proj.weight",
    "*.net.0.proj.weight",
    "*.net.2.weight",
    "*.experts.gate_up_proj",
    "*.experts.down_proj",
];

/// Weights that decay would only pull away from their neutral value.
const UNDECAYED_WEIGHTS: &[&str] = &[
    "*.bias",
    "*norm_q.weight",
    "*norm_k.weight",
    "*norm_added_q.weight",
    "*norm_added_k.weight",
    "*txt_norm.weight",
    "*.norm.weight",
];

const COMMON_KEYS: &[&str] = &["params", "optimizer", "lr", "weight_decay"];
const MUON_KEYS: &[&str] =
    &["momentum", "nesterov", "ns_steps", "ns_form", "ns_dtype", "adjust_lr", "halves"];
const ADAMW_KEYS: &[&str] = &["betas", "eps"];

/// The recipe's groups, then the default ones, for a model that computes in `dtype`.
pub(super) fn groups<'a>(root: &'a Table<'a>, dtype: ComputeDType) -> Result<Vec<Group>, RecipeError> {
    let tables = root.tables("group", "[[group]]")?;
    let mut groups = tables.iter().map(|table| group(table, dtype)).collect::<Result<Vec<_>, _>>()?;
    groups.extend(defaults(dtype));
    Ok(groups)
}

/// The groups of a recipe that names none.
pub(super) fn defaults(dtype: ComputeDType) -> [Group; 3] {
    let muon = Muon { ns_dtype: dtype.into(), ..Muon::default() };
    let patterns = |list: &[&str]| list.iter().map(|pattern| (*pattern).to_owned()).collect();
    [
        Group { params: patterns(MUON_WEIGHTS), optimizer: Optimizer::Muon(muon), default: true },
        Group {
            params: patterns(UNDECAYED_WEIGHTS),
            optimizer: Optimizer::AdamW(AdamW { weight_decay: 0.0, ..AdamW::default() }),
            default: true,
        },
        Group { params: patterns(&["*"]), optimizer: Optimizer::AdamW(AdamW::default()), default: true },
    ]
}

fn group(table: &Table<'_>, dtype: ComputeDType) -> Result<Group, RecipeError> {
    // The other keys depend on the optimiser.
    if table.get("optimizer").is_none() {
        table.only(&[COMMON_KEYS, MUON_KEYS, ADAMW_KEYS].concat())?;
    }
    let muon = table.require("optimizer")?.choice(&[("muon", true), ("adamw", false)])?;
    table.only(&[COMMON_KEYS, if muon { MUON_KEYS } else { ADAMW_KEYS }].concat())?;
    let patterns = table.require("params")?;
    let params = patterns.strings()?;
    if params.is_empty() || params.iter().any(String::is_empty) {
        return Err(patterns.error(format!("`params` in {} has no pattern of weight names", table.name)));
    }
    let optimizer =
        if muon { Optimizer::Muon(muon_of(table, dtype)?) } else { Optimizer::AdamW(adamw_of(table)?) };
    Ok(Group { params, optimizer, default: false })
}

fn muon_of(table: &Table<'_>, dtype: ComputeDType) -> Result<Muon, RecipeError> {
    let usual = Muon::default();
    Ok(Muon {
        lr: table.get("lr").map_or(Ok(usual.lr), |value| value.number(0.0..))?,
        weight_decay: table
            .get("weight_decay")
            .map_or(Ok(usual.weight_decay), |value| value.number(0.0..))?,
        momentum: table.get("momentum").map_or(Ok(usual.momentum), |value| value.number(0.0..1.0))?,
        nesterov: table.get("nesterov").map_or(Ok(usual.nesterov), |value| value.bool())?,
        ns_steps: table
            .get("ns_steps")
            .map_or(Ok(usual.ns_steps), |value| Ok(value.integer(1..=100)? as usize))?,
        ns_form: table.get("ns_form").map_or(Ok(usual.ns_form), |value| {
            value.choice(&[("gram", NsForm::Gram), ("direct", NsForm::Direct)])
        })?,
        ns_dtype: table
            .get("ns_dtype")
            .map_or(Ok(dtype.into()), |value| value.choice(&[("f32", DType::F32), ("bf16", DType::Bf16)]))?,
        adjust_lr: table.get("adjust_lr").map_or(Ok(usual.adjust_lr), |value| {
            value.choice(&[("match_rms_adamw", AdjustLr::MatchRmsAdamW), ("original", AdjustLr::Original)])
        })?,
        halves: table.get("halves").map_or(Ok(usual.halves), |value| {
            value.choice(&[
                ("auto", Halves::Auto),
                ("none", Halves::None),
                ("rows", Halves::Rows),
                ("columns", Halves::Columns),
            ])
        })?,
    })
}

fn adamw_of(table: &Table<'_>) -> Result<AdamW, RecipeError> {
    let usual = AdamW::default();
    let betas = match table.get("betas") {
        None => usual.betas,
        Some(value) => {
            let betas = value.numbers(0.0..1.0)?;
            <[f64; 2]>::try_from(betas).map_err(|betas| {
                value.error(format!("`betas` in {} has {} numbers, it needs two", table.name, betas.len()))
            })?
        }
    };
    Ok(AdamW {
        lr: table.get("lr").map_or(Ok(usual.lr), |value| value.number(0.0..))?,
        weight_decay: table
            .get("weight_decay")
            .map_or(Ok(usual.weight_decay), |value| value.number(0.0..))?,
        betas,
        eps: table.get("eps").map_or(Ok(usual.eps), |value| value.number(POSITIVE))?,
    })
}
