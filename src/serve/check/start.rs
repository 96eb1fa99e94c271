//! What a start would find on this host: its state, its socket, the addresses of its tunnel.
//!
//! Invariants: what is bound, locked, or made to see whether it can be, is let go of at once; each look judges as the start itself does. A recorder that
//! runs with the same settings is no fault, but said. Called by `check`.

use std::fs;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;
use netstack::io::TailnetError;
use netstack::io::keystore::{KeyStore, KeyStoreError};

use crate::config::Config;
use crate::serve::{join, log_key, refused};
use crate::status::{AdminSocket, Client, Found, StatusError};
use crate::store::Store;

/// How the file begins that shows whether one can be made; the process's number follows.
const PROBE: &str = ".tailtape-check-";

/// One look: at what, and what it told.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) what: &'static str,
    pub(super) told: anyhow::Result<String>,
}

/// The recorder that has the state and the socket already.
#[derive(Debug)]
struct Running {
    who: String,
    tunnel: Vec<SocketAddr>,
}

/// Looks at all of it.
pub(super) async fn look(config: &Config) -> Vec<Finding> {
    let socket = AdminSocket::look(&config.socket);
    let state = KeyStore::look(&config.state);
    let held = matches!(&state, Ok(Some((_, true))));
    let running = match socket {
        Ok(Found::Served(process)) if held => Some(running(config, process).await),
        Ok(Found::Served(_) | Found::Nothing | Found::Stale) | Err(_) => None,
    };
    let running = running.as_ref();
    let told = |what, told| Finding { what, told };
    vec![
        told("state", state_told(config, state, running).await),
        told("socket", socket_told(config, socket, running)),
        told("control", control_told(config).await),
        told("tunnel", tunnel_told(config, running).await),
    ]
}

async fn running(config: &Config, process: Option<i32>) -> Running {
    let process = process.map_or("a process".to_owned(), |process| {
        format!("process {process}")
    });
    // One that is too busy to answer has its addresses all the same; they are then told as taken.
    let status = Client::new(&config.socket).status().await;
    Running {
        who: format!("{process}, which answers at {}", config.socket.display()),
        tunnel: status.map(|status| status.node.tunnel).unwrap_or_default(),
    }
}

async fn state_told(
    config: &Config,
    state: Result<Option<(KeyStore, bool)>, KeyStoreError>,
    running: Option<&Running>,
) -> anyhow::Result<String> {
    let dir = &config.state;
    let context = || format!("cannot keep the recorder's state in {}", dir.display());
    let state = state.map_err(|error| refused::state(config, error));
    let Some((mut keys, in_use)) = state? else {
        let maker = existing(dir);
        writable(maker).map_err(|error| refused::state(config, unfit(maker)(error)))?;
        return Ok(format!(
            "{} is made at the start{}",
            dir.display(),
            joining(config, false)
        ));
    };
    let log_key = log_key(&mut keys).with_context(context)?;
    let unusable = |error| anyhow::Error::from(TailnetError::Keys(error));
    keys.machine_key().map_err(unusable).with_context(context)?;
    let has_joined = keys
        .node_key()
        .map_err(unusable)
        .with_context(context)?
        .is_some();
    keys.control_key(&config.control_url)
        .map_err(unusable)
        .with_context(context)?;
    if in_use {
        let Some(running) = running else {
            let dir = dir.clone();
            return Err(KeyStoreError::InUse { dir }).with_context(context);
        };
        return Ok(format!(
            "in use by {}; a second recorder would not start",
            running.who
        ));
    }
    owned(dir)
        .and_then(|()| writable(dir))
        .map_err(|error| refused::state(config, unfit(dir)(error)))?;
    // A start would succeed, and end the other: a copied state, or one that two hosts share.
    let fences = match Store::is_at_work(&config.store, log_key).await {
        true => "; but another process records under its identity, and a start would fence it",
        false => "",
    };
    Ok(format!(
        "{} can be used{}{fences}",
        dir.display(),
        joining(config, has_joined)
    ))
}

fn joining(config: &Config, has_joined: bool) -> &'static str {
    match (has_joined, &config.auth_key) {
        (true, _) => ", and has a node key",
        (false, Some(_)) => "; the node joins with the auth key",
        (false, None) => {
            "; there is neither a node key nor an auth key, so a person must visit the address that the log will name"
        }
    }
}

fn socket_told(
    config: &Config,
    socket: Result<Found, StatusError>,
    running: Option<&Running>,
) -> anyhow::Result<String> {
    let path = &config.socket;
    let context = refused::SOCKET;
    let socket = socket.map_err(|error| refused::socket(config, error));
    match (socket?, running) {
        (Found::Served(_), Some(running)) => Ok(format!("in use by {}", running.who)),
        (Found::Served(_), None) => {
            let path = path.clone();
            Err(StatusError::InUse { path }).context(context)
        }
        (Found::Nothing | Found::Stale, _) => {
            let directory = path.parent().unwrap_or(Path::new("/"));
            // The state's directory is made before the socket in it; no other is.
            let seen = match directory == config.state {
                true => existing(directory),
                false => directory,
            };
            let system = |source| StatusError::System {
                step: "listen on",
                path: path.clone(),
                source,
            };
            writable(seen).map_err(|error| refused::socket(config, system(error)))?;
            Ok(format!("{} can be made", path.display()))
        }
    }
}

/// Whether control's address may be spoken to; whether control answers there is not asked.
async fn control_told(config: &Config) -> anyhow::Result<String> {
    let found = join::control_addresses(config).await;
    let first = found.map(|addresses| addresses.first().map(SocketAddr::ip));
    match first {
        Ok(Some(address)) => {
            config.check_control(address)?;
            Ok(format!("{} is {address}", config.control_url))
        }
        Ok(None) => Ok("not known yet: its name has no address".to_owned()),
        Err(error) => {
            let causes = crate::tell::with_causes(error.as_ref());
            Ok(format!(
                "not known yet, a start would try again until it is: {causes}"
            ))
        }
    }
}

async fn tunnel_told(config: &Config, running: Option<&Running>) -> anyhow::Result<String> {
    let addresses = match join::tunnel_addresses(config).await {
        Ok(addresses) => addresses,
        Err(error) => {
            let causes = crate::tell::with_causes(error.as_ref());
            return Ok(format!(
                "not known yet, a start would try again until it is: {causes}"
            ));
        }
    };
    let mut told = Vec::new();
    for address in addresses {
        let addr = SocketAddr::new(address, config.udp_port);
        match UdpSocket::bind(addr) {
            Ok(_) => told.push(format!("{addr} can be bound")),
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && running.is_some_and(|running| running.tunnel.contains(&addr)) =>
            {
                told.push(format!("{addr} is that of the recorder that runs"));
            }
            Err(source) => {
                return Err(TailnetError::Bind { addr, source })
                    .context("cannot start the node of the tailnet");
            }
        }
    }
    Ok(told.join(", "))
}

/// The nearest directory on the way to `path` that is there.
fn existing(path: &Path) -> &Path {
    let there = path.ancestors().find(|directory| directory.exists());
    there.unwrap_or(Path::new("/"))
}

fn writable(directory: &Path) -> io::Result<()> {
    if !fs::metadata(directory)?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    // Permissions do not say it all: nobody can make a file in /proc, nor on a full disk.
    let probe = directory.join(format!("{PROBE}{}", std::process::id()));
    let made = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&probe)?;
    drop(made);
    fs::remove_file(&probe)
}

/// A start closes the state to others, which only its owner and root may.
fn owned(directory: &Path) -> io::Result<()> {
    let user = rustix::process::geteuid();
    match user.is_root() || fs::metadata(directory)?.uid() == user.as_raw() {
        true => Ok(()),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

fn unfit(path: &Path) -> impl FnOnce(io::Error) -> KeyStoreError {
    let path = path.to_owned();
    move |source| KeyStoreError::File {
        action: "writing to",
        path,
        source,
    }
}
