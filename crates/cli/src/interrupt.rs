//! Ctrl-C. While nothing asks for it the process ends with code 130; while an answer is generated the first Ctrl-C
//! only asks it to stop, and a second one ends the process.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crate::exit::Exit;

static CATCHING: AtomicBool = AtomicBool::new(false);
static PRESSED: AtomicBool = AtomicBool::new(false);

/// Installs the handler. Without one (a system that refuses it) Ctrl-C keeps its usual effect.
pub fn install() {
    let _ = ctrlc::set_handler(|| {
        let asked_to_stop = CATCHING.load(SeqCst) && !PRESSED.swap(true, SeqCst);
        if !asked_to_stop {
            std::process::exit(i32::from(Exit::Interrupted.code()));
        }
    });
}

/// While this lives, Ctrl-C sets a flag in place of ending the process.
pub struct Catch(());

impl Catch {
    /// Starts catching, with the flag down.
    pub fn new() -> Catch {
        PRESSED.store(false, SeqCst);
        CATCHING.store(true, SeqCst);
        Catch(())
    }

    /// True once Ctrl-C was pressed.
    pub fn pressed(&self) -> bool {
        PRESSED.load(SeqCst)
    }
}

impl Drop for Catch {
    fn drop(&mut self) {
        CATCHING.store(false, SeqCst);
    }
}
