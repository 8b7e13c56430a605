//! From a lost device to an engine that goes on.

use std::sync::Arc;

use unicorn_engine::{Engine, Survivors};

use crate::model::{Care, LoadError, LoadedModel, Loader};
use crate::warm_up::warm_up;

/// A request that has lost its device so often is taken to be the cause, and ends.
pub(crate) const LOSSES_MAX: u32 = 4;

/// Opens a model again.
pub(crate) struct Recovery {
    id: String,
    loader: Arc<dyn Loader>,
    /// Told about the model as it is opened now.
    opened: Box<dyn FnMut(&LoadedModel) + Send>,
}

impl Recovery {
    /// Of the model with this id. `opened` is told of each model that takes the place of a lost one.
    pub fn new(
        id: &str,
        loader: Arc<dyn Loader>,
        opened: impl FnMut(&LoadedModel) + Send + 'static,
    ) -> Recovery {
        Recovery { id: id.to_owned(), loader, opened: Box::new(opened) }
    }

    /// An engine for those whose devices are gone: like the one before; if that was lost too, with less work at a time; then on other
    /// devices. What cannot be opened is passed over.
    ///
    /// # Errors
    /// Why the last way did not go.
    pub fn open(&mut self, survivors: &Survivors) -> Result<(Engine, Care), String> {
        let id = &self.id;
        let (lost, left) = (survivors.reason(), survivors.len());
        self.loader.tell(&format!("{id}: {lost}; {left} requests wait until the model is opened again"));
        let passed = match survivors.losses() {
            // What was wrong is not used again: there is no reason to be careful.
            _ if lost.0.is_wrong() => 0,
            0 | 1 => 0,
            2 => 1,
            _ => 2,
        };
        let without = Care::Without(lost.0.lost_device().unwrap_or_default().to_owned());
        let mut why = String::new();
        for care in [Care::Usual, Care::Small, without].into_iter().skip(passed) {
            match self.try_open(&care) {
                Ok(engine) => return Ok((engine, care)),
                Err(error) => {
                    let id = &self.id;
                    self.loader.tell(&format!("{id}: not opened {}: {}", words(&care), error.message));
                    why = error.message;
                }
            }
        }
        Err(why)
    }

    /// An engine for those who ask next, in place of one that failed for this reason and left nothing behind.
    ///
    /// # Errors
    /// Why there is none.
    pub fn open_anew(&mut self, why: &str) -> Result<(Engine, Care), String> {
        self.loader
            .tell(&format!("{}: {why}; what it answered has ended, the model is opened again", self.id));
        match self.try_open(&Care::Usual) {
            Ok(engine) => Ok((engine, Care::Usual)),
            Err(error) => {
                self.loader.tell(&format!("{}: not opened: {}", self.id, error.message));
                Err(error.message)
            }
        }
    }

    fn try_open(&mut self, care: &Care) -> Result<Engine, LoadError> {
        let mut model = self.loader.load(&self.id, care, &mut |_| {})?;
        warm_up(&mut model.engine)?;
        (self.opened)(&model);
        let devices = model.facts.devices.join(", ");
        self.loader.tell(&format!("{}: it goes on {} ({devices})", self.id, words(care)));
        Ok(model.engine)
    }
}

fn words(care: &Care) -> &'static str {
    match care {
        Care::Usual => "as before",
        Care::Small => "with less work at a time",
        Care::Without(_) => "on other devices",
    }
}
