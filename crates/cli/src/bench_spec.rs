//! What `bench` can be asked to run without a model file: shapes and tensor types by name.

use std::str::FromStr;

use unicorn_cases::shapes;
use unicorn_core::TensorType;

/// `llama-8b:q4_k`: a model shape and the type of its matrices.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShapeChoice {
    /// Known shape, for example `llama-8b`.
    pub size: String,
    /// Type of the matrices.
    pub ty: TensorType,
}

impl FromStr for ShapeChoice {
    type Err = String;

    /// `SIZE:TYPE`; `8b:q4_k` is short for `llama-8b:q4_k`.
    fn from_str(text: &str) -> Result<ShapeChoice, String> {
        let (size, ty) = text.split_once(':').ok_or("wanted SIZE:TYPE, for example llama-8b:q4_k")?;
        let size = size.to_ascii_lowercase();
        let short = |name: &'static str| name.rsplit_once('-').map(|(_, short)| short);
        let known = shapes::names().find(|name| *name == size || short(name) == Some(&size));
        let names = || shapes::names().collect::<Vec<_>>().join(", ");
        let size = known.ok_or_else(|| format!("no shape `{size}`; known: {}", names()))?;
        Ok(ShapeChoice { size: size.to_owned(), ty: tensor_type(ty)? })
    }
}

impl std::fmt::Display for ShapeChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.size, self.ty.name().to_ascii_lowercase())
    }
}

/// Type of the weights of `bench ffn`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FfnType(pub TensorType);

impl FromStr for FfnType {
    type Err = String;

    fn from_str(text: &str) -> Result<FfnType, String> {
        tensor_type(text).map(FfnType)
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
    fn mistakes_list_what_is_known() {
        assert!("llama-9b:q4_k".parse::<ShapeChoice>().unwrap_err().contains("llama-8b"));
        assert!("llama-8b:q9".parse::<ShapeChoice>().unwrap_err().contains("q4_k"));
        assert!("llama-8b".parse::<ShapeChoice>().unwrap_err().contains("SIZE:TYPE"));
    }
}
