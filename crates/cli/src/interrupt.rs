//! Ctrl-C. While nothing asks for it the process ends with code 130; while an answer is generated the first Ctrl-C only asks it
//! to stop, and pressing on ends the process.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use crate::exit::Exit;

/// Presses that do not end the process; 0 while nothing asks for them.
static PATIENCE: AtomicU32 = AtomicU32::new(0);
static PRESSES: AtomicU32 = AtomicU32::new(0);

/// Installs the handler. Where the system refuses it, Ctrl-C keeps its usual effect.
pub fn install() {
    // The library replaces the usual effect before it starts its thread: without that thread Ctrl-C would do nothing at all.
    if let Ok(probe) = std::thread::Builder::new().spawn(|| {}) {
        let _ = probe.join();
        let _ = ctrlc::set_handler(|| {
            if PRESSES.fetch_add(1, SeqCst) >= PATIENCE.load(SeqCst) {
                std::process::exit(i32::from(Exit::Interrupted.code()));
            }
        });
    }
}

/// While this lives, Ctrl-C is counted in place of ending the process.
pub struct Catch(());

impl Catch {
    /// Starts catching: the second press ends the process.
    pub fn new() -> Catch {
        let catch = Catch(());
        catch.forgive(1);
        catch
    }

    /// Forgets the presses so far; this many more do not end the process.
    pub fn forgive(&self, presses: u32) {
        PRESSES.store(0, SeqCst);
        PATIENCE.store(presses, SeqCst);
    }

    /// True once Ctrl-C was pressed.
    pub fn pressed(&self) -> bool {
        PRESSES.load(SeqCst) > 0
    }
}

impl Drop for Catch {
    fn drop(&mut self) {
        PATIENCE.store(0, SeqCst);
    }
}
