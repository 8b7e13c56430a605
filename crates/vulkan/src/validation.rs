//! What the Khronos validation layer says, kept rather than printed.

use std::ffi::{CStr, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use ash::vk;

use crate::error::VulkanError;

/// One message of the validation layer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ValidationMessage {
    /// True for an error, false for a warning.
    pub error: bool,
    /// Name of the rule, for example `VUID-vkCmdDispatch-None-08114`.
    pub rule: String,
    /// What the layer says.
    pub text: String,
}

impl std::fmt::Display for ValidationMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.error { "error" } else { "warning" };
        write!(f, "validation {kind} {}: {}", self.rule, self.text)
    }
}

/// A growing list of messages.
pub type SharedMessages = Arc<Mutex<Vec<ValidationMessage>>>;

/// Listens to the layer until it is stopped.
pub(crate) struct Validation {
    calls: ash::ext::debug_utils::Instance,
    messenger: vk::DebugUtilsMessengerEXT,
    messages: SharedMessages,
    /// The messenger's own share of the list, given back by `stop`.
    given: *const Mutex<Vec<ValidationMessage>>,
    stopped: AtomicBool,
}

// SAFETY: the pointer is that of an `Arc` of a type that may be shared, and is used once, by `stop`.
unsafe impl Send for Validation {}
// SAFETY: as above.
unsafe impl Sync for Validation {}

impl Validation {
    /// Starts listening. The instance has the validation layer, which brings the debug extension.
    pub(crate) fn listen(entry: &ash::Entry, instance: &ash::Instance) -> Result<Validation, VulkanError> {
        let messages = SharedMessages::default();
        let calls = ash::ext::debug_utils::Instance::new(entry, instance);
        // A share of its own keeps the list alive for as long as the layer may call.
        let given = Arc::into_raw(messages.clone());
        let info = vk::DebugUtilsMessengerCreateInfoEXT::default()
            .message_severity(
                vk::DebugUtilsMessageSeverityFlagsEXT::WARNING | vk::DebugUtilsMessageSeverityFlagsEXT::ERROR,
            )
            .message_type(
                vk::DebugUtilsMessageTypeFlagsEXT::VALIDATION
                    | vk::DebugUtilsMessageTypeFlagsEXT::PERFORMANCE,
            )
            .pfn_user_callback(Some(receive))
            .user_data(given.cast_mut().cast());
        // SAFETY: the list outlives the messenger, see `stop`.
        let messenger = unsafe { calls.create_debug_utils_messenger(&info, None) }?;
        Ok(Validation { calls, messenger, messages, given, stopped: AtomicBool::new(false) })
    }

    pub(crate) fn messages(&self) -> SharedMessages {
        self.messages.clone()
    }

    /// Ends listening; called once the device is gone, before the instance goes.
    pub(crate) fn stop(&self) {
        if !self.stopped.swap(true, Ordering::Relaxed) {
            // SAFETY: both were made by `listen` and are given up once; the layer no longer calls.
            unsafe {
                self.calls.destroy_debug_utils_messenger(self.messenger, None);
                drop(Arc::from_raw(self.given));
            }
        }
    }
}

/// Called by the layer, from any thread that makes Vulkan calls.
unsafe extern "system" fn receive(
    severity: vk::DebugUtilsMessageSeverityFlagsEXT,
    _types: vk::DebugUtilsMessageTypeFlagsEXT,
    data: *const vk::DebugUtilsMessengerCallbackDataEXT<'_>,
    list: *mut c_void,
) -> vk::Bool32 {
    // SAFETY: the layer passes valid data, and the list that `listen` gave it.
    let (data, list) = unsafe { (&*data, &*list.cast::<Mutex<Vec<ValidationMessage>>>()) };
    let text = |p: *const std::ffi::c_char| {
        if p.is_null() {
            return String::new();
        }
        // SAFETY: strings of the callback data end in zero.
        unsafe { CStr::from_ptr(p) }.to_string_lossy().into_owned()
    };
    let message = ValidationMessage {
        error: severity.contains(vk::DebugUtilsMessageSeverityFlagsEXT::ERROR),
        rule: text(data.p_message_id_name),
        text: text(data.p_message),
    };
    list.lock().unwrap_or_else(|e| e.into_inner()).push(message);
    vk::FALSE
}
