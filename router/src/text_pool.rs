//! Where text is worked on: parsing, templates and tokenizing take milliseconds for long prompts, which async threads
//! do not have.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::openai::ApiError;

/// Runs work on blocking threads, at most so much at once. Whoever waits for a turn is a request in progress, and
/// these are bounded.
#[derive(Clone)]
pub(crate) struct TextPool {
    turns: Arc<Semaphore>,
}

impl TextPool {
    pub(crate) fn new(threads: usize) -> Self {
        Self { turns: Arc::new(Semaphore::new(threads)) }
    }

    /// Runs `work`. The turn lasts as long as the work does, even if nobody waits for it any more.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let failed = || ApiError::internal("Processing the text of the request failed.");
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(|_| failed())?;
        let task = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        task.await.map_err(|error| {
            tracing::error!(%error, "a text task ended abnormally");
            failed()
        })
    }
}
