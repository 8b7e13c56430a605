//! What `bench` and `plan` can be asked for without a model file: shapes and tensor types by name.

use std::str::FromStr;

use unicorn_cases::shapes;
use unicorn_core::{ModelSpec, TensorType};

/// `llama-8b:q4_k`, or `llama-8b` with the type named elsewhere: a model shape and the type of its matrices.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShapeChoice {
    /// Known shape, for example `llama-8b`.
    pub size: String,
    /// Type of the matrices.
    pub ty: Option<TensorType>,
}

impl ShapeChoice {
    /// The type of the matrices, named once: with the shape or by `--type`.
    fn ty(&self, option: Option<WeightType>) -> Result<TensorType, String> {
        match (self.ty, option) {
            (Some(ty), None) => Ok(ty),
            (None, Some(option)) => Ok(option.0),
            (None, None) => {
                Err(format!("--shape {0}: which type? For example {0}:q4_k, or --type q4_k", self.size))
            }
            (Some(ty), Some(option)) => Err(format!("--shape {self} says {ty}, --type says {}", option.0)),
        }
    }
}

impl ShapeChoice {
    /// The model that is meant, named as it was asked for.
    pub fn spec(&self, option: Option<WeightType>) -> Result<ModelSpec, String> {
        let ty = self.ty(option)?;
        let mut spec = shapes::model(&self.size, ty).ok_or_else(|| format!("no shape {}", self.size))?;
        spec.name = format!("{}:{}", self.size, ty.name().to_ascii_lowercase());
        Ok(spec)
    }
}

impl FromStr for ShapeChoice {
    type Err = String;

    /// `SIZE` or `SIZE:TYPE`; `8b:q4_k` is short for `llama-8b:q4_k`.
    fn from_str(text: &str) -> Result<ShapeChoice, String> {
        let (size, ty) = text.split_once(':').map_or((text, None), |(size, ty)| (size, Some(ty)));
        let size = size.to_ascii_lowercase();
        let short = |name: &'static str| name.rsplit_once('-').map(|(_, short)| short);
        let known = shapes::names().find(|name| *name == size || short(name) == Some(&size));
        let names = || shapes::names().collect::<Vec<_>>().join(", ");
        let size = known.ok_or_else(|| format!("no shape `{size}`; known: {}", names()))?;
        Ok(ShapeChoice { size: size.to_owned(), ty: ty.map(tensor_type).transpose()? })
    }
}

impl std::fmt::Display for ShapeChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.ty {
            Some(ty) => write!(f, "{}:{}", self.size, ty.name().to_ascii_lowercase()),
            None => f.write_str(&self.size),
        }
    }
}

/// A type of weights by its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WeightType(pub TensorType);

impl FromStr for WeightType {
    type Err = String;

    fn from_str(text: &str) -> Result<WeightType, String> {
        tensor_type(text).map(WeightType)
    }
}

fn tensor_type(name: &str) -> Result<TensorType, String> {
    TensorType::parse(name).ok_or_else(|| {
        let known = TensorType::ALL.map(|t| t.name().to_ascii_lowercase());
        format!("no tensor type `{name}`; known: {}", known.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_parse_and_print() {
        let shape: ShapeChoice = "8B:Q4_K".parse().unwrap();
        assert_eq!(shape.to_string(), "llama-8b:q4_k");
        assert_eq!(shape, "llama-8b:q4_k".parse().unwrap());
        assert_eq!("135m:f16".parse::<ShapeChoice>().unwrap().to_string(), "smollm2-135m:f16");
    }

    #[test]
    fn the_type_is_named_once() {
        let ty = |shape: &str, option: Option<TensorType>| {
            shape.parse::<ShapeChoice>().and_then(|s| s.ty(option.map(WeightType)))
        };
        assert_eq!(ty("8b:q4_k", None), Ok(TensorType::Q4_K));
        assert_eq!(ty("8b", Some(TensorType::F16)), Ok(TensorType::F16));
        assert!(ty("8b", None).unwrap_err().contains("llama-8b:q4_k"));
        assert!(ty("8b:q4_k", Some(TensorType::F16)).unwrap_err().contains("F16"));
    }

    #[test]
    fn mistakes_list_what_is_known() {
        assert!("llama-9b:q4_k".parse::<ShapeChoice>().unwrap_err().contains("llama-8b"));
        assert!("llama-8b:q9".parse::<ShapeChoice>().unwrap_err().contains("q4_k"));
    }
}
