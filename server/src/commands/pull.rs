//! `pallium pull`: a model's files into the hub's cache; prints the directory.

use std::io::Write as _;

use engine_core::loader::LoadFormat;

use crate::cli::PullArgs;
use crate::hub::{self, HubConfig, Request};
use crate::model::{DownloadBar, StartError};

/// Downloads what is missing and prints the snapshot's directory on standard output.
///
/// # Errors
/// The hub's, which name the model and say what would help.
pub fn run(args: &PullArgs) -> Result<(), StartError> {
    let config = hub_config(args);
    let request =
        Request { model: &args.model, revision: args.revision.as_deref(), format: LoadFormat::Auto };
    let bar = DownloadBar::new(&args.model, args.logging.format);
    let resolved = hub::pull(&request, &args.include, &config, &|event| bar.on(event));
    bar.finish();
    writeln!(std::io::stdout(), "{}", resolved?.dir.display())?;
    Ok(())
}

fn hub_config(args: &PullArgs) -> HubConfig {
    let mut config = HubConfig::from_env();
    if let Some(token) = &args.hf_token {
        config.token = Some(token.expose().to_owned());
    }
    if let Some(dir) = &args.download_dir {
        config.cache.clone_from(dir);
    }
    config
}
