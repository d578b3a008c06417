//! `--watch`: a command's answer again and again.

use std::convert::Infallible;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::Failure;
use crate::output::{clear, one_line, print, print_json, print_json_line};

/// How often `--watch` asks.
const REDRAW: Duration = Duration::from_secs(1);

/// How much is shown, and how often.
#[derive(Debug, Clone, Copy, Args)]
pub struct Show {
    /// Show more columns or lines, which may be wider than the terminal
    #[arg(long)]
    pub wide: bool,
    /// Show again each second, until Ctrl-C; with --json, one document on each line
    #[arg(long, short)]
    pub watch: bool,
}

/// Shows what `read` gives, as JSON or as `text` has it. Returns it, once it is shown, unless it is to be shown for good.
///
/// # Errors
/// It cannot be read the first time, or not be shown.
pub async fn shown<T: Serialize>(
    show: Show,
    json: bool,
    read: impl AsyncFn() -> Result<T, Failure>,
    text: impl Fn(&T) -> String,
) -> Result<T, Failure> {
    let first = read().await?;
    if show.watch {
        return match again_and_again(first, json, read, text).await {
            Ok(never) => match never {},
            Err(failure) => Err(failure),
        };
    }
    match json {
        true => print_json(&first)?,
        false => print(&text(&first))?,
    }
    Ok(first)
}

async fn again_and_again<T: Serialize>(
    mut value: T,
    json: bool,
    read: impl AsyncFn() -> Result<T, Failure>,
    text: impl Fn(&T) -> String,
) -> Result<Infallible, Failure> {
    loop {
        match json {
            true => print_json_line(&value)?,
            // Everything at once, so that nothing flickers.
            false => print(&format!("{}{}", clear(), text(&value)))?,
        }
        value = loop {
            tokio::time::sleep(REDRAW).await;
            match read().await {
                Ok(value) => break value,
                Err(error) => eprintln!("meshctl: {}; trying again", one_line(&error.to_string())),
            }
        };
    }
}
