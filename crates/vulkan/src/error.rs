//! Errors of the Vulkan layer.

use ash::vk;
use unicorn_core::DeviceError;

/// Something failed in or around the Vulkan driver.
#[derive(thiserror::Error, Debug)]
pub enum VulkanError {
    /// The Vulkan loader library is not installed.
    #[error("the Vulkan loader could not be loaded ({reason}); install a GPU driver with Vulkan support")]
    NoLoader {
        /// What the system's linker said.
        reason: String,
    },
    /// No device matches what was asked.
    #[error("no Vulkan device matches '{asked}'; found: {found}; `unicorn devices` lists what can be named")]
    NoDevice {
        /// What was asked for.
        asked: String,
        /// Names of the devices found.
        found: String,
    },
    /// The device lacks something every kernel needs.
    #[error("{device} lacks {missing}")]
    Missing {
        /// Device name.
        device: String,
        /// The feature or extension.
        missing: String,
    },
    /// Out of memory, or the device was lost.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The GPU stopped answering, without the driver noticing.
    #[error("{device}: no answer for {seconds} s during {what}")]
    Hung {
        /// Device name.
        device: String,
        /// What was waited for.
        what: String,
        /// How long nothing ended.
        seconds: u64,
    },
    /// Something is larger than the device allows.
    #[error("{device}: {what} needs {asked}, the device allows {most}")]
    Limit {
        /// Device name.
        device: String,
        /// What was asked for.
        what: String,
        /// How much was asked, with its unit.
        asked: String,
        /// The limit.
        most: u64,
    },
    /// The validation layer was asked for.
    #[error(
        "the validation layer {layer} is not installed; it comes with the Vulkan SDK or the package vulkan-validationlayers"
    )]
    NoLayer {
        /// Its name.
        layer: String,
    },
    /// The loader knows no driver.
    #[error("no Vulkan driver is installed; install one of your GPU's vendor, or use `--device cpu`")]
    NoDriver,
    /// The loader could not start. It reports descriptions of drivers that it cannot read as if memory were short.
    #[error(
        "the Vulkan loader could not start: {0}; is a description of a driver damaged, such as one that VK_DRIVER_FILES names?"
    )]
    NoInstance(vk::Result),
    /// The driver refused to open the device.
    #[error("{device} could not be opened: {result}; its driver may be short of memory or threads")]
    Open {
        /// Device name.
        device: String,
        /// What the driver said.
        result: vk::Result,
    },
    /// Any other failed call.
    #[error("a Vulkan call failed: {0}")]
    Call(#[from] vk::Result),
}

impl VulkanError {
    /// The error as it crosses the device seam.
    pub fn into_device_error(self, device: &str) -> DeviceError {
        let name = device.to_string();
        match self {
            VulkanError::Device(error) => error,
            VulkanError::Hung { device, what, seconds } => {
                DeviceError::Lost { device, what: format!("{what} (no answer for {seconds} s)") }
            }
            VulkanError::Limit { device, what, asked, most } => DeviceError::Unsupported {
                device,
                what: format!("{what} of {asked}, past the device's limit of {most},"),
            },
            VulkanError::Call(vk::Result::ERROR_DEVICE_LOST) => {
                DeviceError::Lost { device: name, what: "a driver call".into() }
            }
            VulkanError::Call(result) => {
                DeviceError::Failed { device: name, what: "a driver call".into(), reason: result.to_string() }
            }
            other => DeviceError::Failed { device: name, what: "opening".into(), reason: other.to_string() },
        }
    }
}
