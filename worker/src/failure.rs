//! Which errors of a worker's start would come again at every start.

use disagg_process::Failure;

use crate::args::ArgsError;
use crate::hub::HubError;
use crate::model::ModelError;
use crate::server::ServeError;

/// What the error that has ended a worker says about another start.
pub fn failure(error: &anyhow::Error) -> Failure {
    error.chain().map(of_cause).find(|failure| *failure != Failure::Passing).unwrap_or(Failure::Passing)
}

fn of_cause(cause: &(dyn std::error::Error + 'static)) -> Failure {
    let refused = |is_final: bool| if is_final { Failure::Refused } else { Failure::Passing };
    if cause.is::<ArgsError>() {
        Failure::Refused
    } else if let Some(error) = cause.downcast_ref::<ModelError>() {
        refused(error.is_final())
    } else if let Some(error) = cause.downcast_ref::<HubError>() {
        refused(error.is_final())
    } else if let Some(error) = cause.downcast_ref::<ServeError>() {
        match error {
            ServeError::Bind { source, .. } => Failure::of_listening(source),
            ServeError::NothingToAdvertise(_) | ServeError::Config(_) => Failure::Refused,
            ServeError::Thread(_) | ServeError::Engine(_) | ServeError::Transport(_) => Failure::Passing,
        }
    } else {
        Failure::Passing
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;
    use crate::model::ModelSpec;

    #[test]
    fn errors_say_whether_another_start_may_go_well() {
        let in_use = ServeError::Bind {
            flag: "listen",
            address: "127.0.0.1:1".to_owned(),
            source: std::io::ErrorKind::AddrInUse.into(),
        };
        let folder = tempfile::tempdir().expect("a folder");
        let no_config = ModelSpec::read(folder.path()).expect_err("an empty folder");
        let wrapped = Err::<(), _>(no_config).context("loading").expect_err("an error");
        for (error, wanted) in [
            (ArgsError::new("block-size", "0 given").into(), Failure::Refused),
            (wrapped, Failure::Refused),
            (in_use.into(), Failure::AddressInUse),
            (ServeError::Engine("a GPU is gone".to_owned()).into(), Failure::Passing),
            (ServeError::Thread(std::io::ErrorKind::OutOfMemory.into()).into(), Failure::Passing),
            (anyhow::anyhow!("whatever"), Failure::Passing),
        ] {
            assert_eq!(failure(&error), wanted, "{error:#}");
        }
    }
}
