//! `meshctl dashboard`: the mesh on a web page, for the user who started it and for nobody else on this host.

mod guard;
mod history;
mod model;
mod server;
mod sources;
mod view;

use std::convert::Infallible;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

use clap::Args;
use mesh_client::Daemon;
use mesh_shared::address::{AddressError, LoopbackAddr};
use mesh_shared::name::NodeName;
use serde_json::json;
use tempfile::NamedTempFile;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::output::{print, print_json_line};
use crate::{Failure, Global};
use guard::Guard;
use server::Server;
pub use sources::Sources;
use view::View;

/// Arguments of `meshctl dashboard`.
#[derive(Debug, Args)]
#[command(after_help = "\
It shows what this host's sidecar carries, and other nodes that name this one in proxy.live.peers.

For a page of a server: meshctl dashboard --no-open --listen 8900 there, ssh -L 8900:127.0.0.1:8900 ct110 on your own
machine, and open the URL that was printed.")]
pub struct DashboardArgs {
    /// Where to serve the page: a port of 127.0.0.1, or a loopback address and port; 0: any free port
    #[arg(long, value_name = "PORT|ADDRESS:PORT", default_value = "127.0.0.1:0", value_parser = listen_address)]
    listen: LoopbackAddr,
    /// Print the URL without opening a browser
    #[arg(long)]
    no_open: bool,
}

fn listen_address(text: &str) -> Result<LoopbackAddr, String> {
    match text.parse() {
        Ok(port) => Ok(LoopbackAddr::v4(port)),
        Err(_) => text
            .parse()
            .map_err(|error: AddressError| format!("{error}; to look from another machine, use ssh -L")),
    }
}

/// Serves the page until Ctrl-C.
///
/// # Errors
/// The configuration cannot be used, or the address is not available.
pub async fn run(args: DashboardArgs, global: &Global) -> Result<ExitCode, Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let Some(config) = global.config()? else {
        let path = mesh_shared::config::DEFAULT_PATH;
        return Err(Failure::Usage(format!(
            "there is no {path}, so this host is not part of a mesh; another file is named with --config, and \
             `meshctl demo` shows a small mesh"
        )));
    };
    let sources = Sources {
        registryd: global.registryd()?,
        outbound: Daemon::Sidecar(config.proxy.outbound.listen.socket_addr()),
        sidecar: Daemon::Admin(config.proxy.admin.socket),
    };
    let dashboard = Dashboard::bind(args.listen, Some(config.mesh.node_name), sources).await?;
    match global.json {
        true => print_json_line(&json!({ "url": dashboard.url() }))?,
        false => {
            let url = dashboard.url();
            print(&format!("The dashboard is at\n    {url}\nOnly this URL opens it. Ctrl-C ends it.\n"))?;
        }
    }
    // Removed when it ends.
    let _opened = match args.no_open {
        true => None,
        false => dashboard.open(),
    };
    tokio::select! {
        never = dashboard.serve() => match never {},
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// A dashboard that has its address.
pub struct Dashboard {
    listener: TcpListener,
    server: Arc<Server>,
    view: Arc<View>,
    sources: Sources,
    url: String,
}

impl Dashboard {
    /// Takes the address.
    ///
    /// # Errors
    /// It is not available.
    pub async fn bind(
        listen: LoopbackAddr,
        node: Option<NodeName>,
        sources: Sources,
    ) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::Said(format!("cannot listen on {listen}: {error}"));
        let listener = TcpListener::bind(listen.socket_addr()).await.map_err(failed)?;
        let guard = Guard::new(listener.local_addr().map_err(failed)?)
            .map_err(|_| Failure::Said("the system has no random numbers for a token".into()))?;
        let (url, view) = (guard.url(), Arc::new(View::new(node)));
        Ok(Self { listener, server: Arc::new(Server::new(guard, view.clone())), view, sources, url })
    }

    /// What opens it. Secret.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Opens it in the browser of this desktop, where there is one. What is returned has to be kept meanwhile.
    pub fn open(&self) -> Option<NamedTempFile> {
        let desktop = ["WAYLAND_DISPLAY", "DISPLAY"].iter().any(|name| std::env::var_os(name).is_some());
        if !desktop {
            return None;
        }
        // Arguments of a command can be read by all users of this host; this file by its owner only.
        let folder = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let mut file = tempfile::Builder::new().prefix("mesh-").suffix(".html").tempfile_in(folder).ok()?;
        write!(
            file,
            "<!doctype html><meta http-equiv=refresh content=\"0; url={}\"><title>Mesh</title>",
            self.url
        )
        .ok()?;
        let mut browser = Command::new("xdg-open");
        browser.arg(file.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // Where it cannot be started, the URL has been printed.
        browser.spawn().ok().map(|_| file)
    }

    /// Follows the mesh and serves the page, until dropped.
    pub async fn serve(self) -> Infallible {
        let Self { listener, server, view, sources, .. } = self;
        let (never, ..) = tokio::join!(server.serve(listener), sources.follow(view.clone()), view.tell());
        never
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_addresses_are_listened_on() {
        assert_eq!(listen_address("8900").unwrap().to_string(), "127.0.0.1:8900");
        assert_eq!(listen_address("[::1]:0").unwrap().to_string(), "[::1]:0");
        for (text, why) in
            [("0.0.0.0:1", "not a loopback address"), ("[::]:1", "not a loopback"), ("x", "is not an")]
        {
            let refusal = listen_address(text).unwrap_err();
            assert!(refusal.contains(why) && refusal.contains("ssh -L"), "{refusal}");
        }
    }
}
