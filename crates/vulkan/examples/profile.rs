//! Prints what this machine's GPUs can do, in the form of the files under `profiles/`.

use unicorn_vulkan::{Library, LibraryOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for candidate in Library::load(LibraryOptions::default())?.candidates()? {
        println!("{}", serde_json::to_string_pretty(&candidate.profile)?);
    }
    Ok(())
}
