//! `--memory-max`: what may be taken of the memory of devices.

use std::str::FromStr;

use crate::devices::DeviceChoice;

/// Bytes that may be taken, of every device or of some.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MemoryMax {
    every: Option<u64>,
    /// By the device's name, in small letters.
    devices: Vec<(String, u64)>,
}

impl MemoryMax {
    /// As it is written for this machine, where only devices can be named that this program can open.
    pub fn of_this_machine(text: &str) -> Result<MemoryMax, String> {
        let max: MemoryMax = text.parse()?;
        max.devices.iter().try_for_each(|(name, _)| name.parse::<DeviceChoice>().map(drop))?;
        Ok(max)
    }

    /// The bytes that may be taken of a device that goes by these names. One that is `vulkan:0` is meant by `vulkan` too, unless its
    /// whole name is there.
    pub fn of(&self, names: &[&str]) -> Option<u64> {
        let bytes = |name: &str| self.devices.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|d| d.1);
        let named = names.iter().find_map(|name| bytes(name));
        named.or_else(|| names.iter().find_map(|name| bytes(kind(name)))).or(self.every)
    }

    /// A device that is named, but is none of these.
    pub fn stranger(&self, names: &[&str]) -> Option<&str> {
        let known =
            |name: &str| names.iter().flat_map(|n| [n, kind(n)]).any(|n| n.eq_ignore_ascii_case(name));
        self.devices.iter().map(|(name, _)| name.as_str()).find(|name| !known(name))
    }
}

/// What stands before the colon of a device's name.
fn kind(name: &str) -> &str {
    name.split(':').next().unwrap_or(name)
}

impl FromStr for MemoryMax {
    type Err = String;

    /// `6GiB`, or `cpu=8GiB,vulkan:0=6GiB`, or both, where the first is for all that are not named. Any name may be a device's.
    fn from_str(text: &str) -> Result<MemoryMax, String> {
        let mut max = MemoryMax::default();
        for part in text.split(',') {
            match part.split_once('=') {
                None if max.every.is_some() => return Err("two sizes for every device".into()),
                None => max.every = Some(size(part)?),
                Some((name, bytes)) => {
                    let name = name.trim().to_ascii_lowercase();
                    if name.is_empty() {
                        return Err(format!("`{part}` names no device"));
                    }
                    if max.devices.iter().any(|(known, _)| *known == name) {
                        return Err(format!("two sizes for {name}"));
                    }
                    max.devices.push((name, size(bytes)?));
                }
            }
        }
        Ok(max)
    }
}

/// A size with its unit: `6GiB`, `1.5GB`, `512M`. Without the `i` units are decimal, as wherever this program tells a size.
fn size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim_start().to_ascii_lowercase().as_str() {
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "ki" | "kib" => 1024.0,
        "mi" | "mib" => 1048576.0,
        "gi" | "gib" => 1073741824.0,
        "ti" | "tib" => 1099511627776.0,
        "" | "b" if !number.is_empty() => return Err(format!("`{text}` has no unit such as MB or GiB")),
        _ => return Err(format!("`{text}` is no size such as 6GiB or 512MB")),
    };
    let bytes =
        number.parse::<f64>().map_err(|_| format!("`{text}` is no size such as 6GiB or 512MB"))? * factor;
    if bytes < 1.0 {
        return Err(format!("`{text}` is no memory at all"));
    }
    // Past the largest number it is the largest.
    Ok(bytes as u64)
}

/// A size, or 0 for none.
pub fn size_or_none(text: &str) -> Result<u64, String> {
    match text.trim() {
        "0" => Ok(0),
        text => size(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, device: &str) -> Option<u64> {
        text.parse::<MemoryMax>().unwrap().of(&[device])
    }

    #[test]
    fn one_size_is_for_every_device_and_a_name_for_its_own() {
        assert_eq!(of("6GiB", "cpu"), Some(6 << 30));
        assert_eq!(of("cpu=8GiB, vulkan:0=6GB", "cpu"), Some(8 << 30));
        assert_eq!(of("cpu=8GiB,vulkan:0=6GB", "vulkan:0"), Some(6_000_000_000));
        assert_eq!(of("cpu=8GiB,vulkan:0=6GB", "vulkan:1"), None);
        assert_eq!(
            (of("1.5gib,CPU=512m", "cpu"), of("1.5gib,CPU=512m", "vulkan")),
            (Some(512_000_000), Some(3 << 29))
        );
        let max: MemoryMax = "vulkan:0=1T".parse().unwrap();
        // A device goes by what it was asked for and by what it is called.
        assert_eq!(max.of(&["vulkan", "Vulkan:0"]), Some(1_000_000_000_000));
        assert_eq!(max.stranger(&["vulkan", "Vulkan:0"]), None);
        assert_eq!(max.stranger(&["cpu", "vulkan:1"]), Some("vulkan:0"));
        // And by its kind, where nothing closer is said.
        assert_eq!((of("vulkan=1GB", "vulkan:1"), of("vulkan=1GB", "cpu")), (Some(1_000_000_000), None));
        assert_eq!(of("vulkan=1GB,vulkan:1=2GB", "vulkan:1"), Some(2_000_000_000));
        assert_eq!("vulkan=1GB".parse::<MemoryMax>().unwrap().stranger(&["vulkan:1"]), None);
    }

    #[test]
    fn devices_of_other_machines_have_names_too() {
        assert_eq!(of("npu=512M", "NPU"), Some(512_000_000));
        assert_eq!("6G,npu=1G".parse::<MemoryMax>().unwrap().stranger(&["cpu"]), Some("npu"));
        let error = MemoryMax::of_this_machine("npu=512M").unwrap_err();
        assert!(error.contains("no device `npu`; there are cpu"), "{error}");
        let max = MemoryMax::of_this_machine("cpu=1GB,vulkan:H100=2GB").unwrap();
        assert_eq!(max.of(&["vulkan:h100"]), Some(2_000_000_000));
    }

    #[test]
    fn none_is_a_size_where_it_may_be() {
        assert_eq!((size_or_none("0"), size_or_none("1.5GiB")), (Ok(0), Ok(3 << 29)));
        for text in ["", "8", "-1GB", "0GB", "x"] {
            assert!(size_or_none(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_or_no_device_is_named() {
        for (text, named) in [
            ("6", "`6` has no unit"),
            ("6X", "`6X`"),
            ("GiB", "`GiB`"),
            ("1.2.3GB", "1.2.3"),
            ("-1GB", "-1GB"),
            ("0GB", "no memory"),
            ("", "no size"),
            ("=1GB", "no device"),
            (" =1GB", "no device"),
            ("cpu=1GB,cpu=2GB", "two sizes for cpu"),
            ("1GB,2GB", "two sizes"),
        ] {
            let error = text.parse::<MemoryMax>().unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
