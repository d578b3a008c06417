//! Values as other programs write them: what cannot be understood is treated as missing.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// No time is that late, epoch ms. Such a number reads as none: not every program has it exactly, and counting on
/// from it would end.
pub const END_OF_TIME_MS: u64 = 1 << 53;

/// Times that other programs write as `1.7e12` still count; `null` and what is not a time are read as 0.
pub(super) fn epoch_ms<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Number(n) => n.as_u64().or_else(|| n.as_f64().map(|ms| ms.max(0.0) as u64)),
        _ => None,
    }
    .filter(|ms| *ms < END_OF_TIME_MS)
    .unwrap_or(0))
}

/// See [`epoch_ms`].
pub(super) struct Time(pub(super) u64);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        epoch_ms(deserializer).map(Self)
    }
}

/// Anything but a text reads as none.
pub(super) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::String(text) => text,
        _ => String::new(),
    })
}

pub(super) fn role<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    text(deserializer).map(|role| Some(role).filter(|role| !role.is_empty()))
}

/// `3000.0` and `"3000"` still count; what is not a port reads as 0.
pub(super) fn port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Number(n) => {
            let whole = n.as_f64().filter(|port| port.fract() == 0.0 && (0.0..65_536.0).contains(port));
            whole.map_or(0, |port| port as u16)
        }
        Value::String(text) => text.parse().unwrap_or(0),
        _ => 0,
    })
}

/// A word that is not known here, and whatever is not a word, reads as the default.
pub(super) fn word<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(serde_json::from_value(Value::deserialize(deserializer)?).unwrap_or_default())
}

/// A missing array, `null`, or members that are not texts are read as what is left of them.
pub(super) fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Array(items) => items
            .into_iter()
            .filter_map(|item| match item {
                Value::String(text) => Some(text),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    })
}
