//! The socket file: made with mode 0600 from its first moment, removed at the end.
//!
//! Invariant: a socket that answers is never taken away from its recorder; one that a crash left is replaced. Called by the wiring.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{UnixListener, UnixStream};

use super::StatusError;

/// Questions that may wait to be accepted.
const BACKLOG: i32 = 16;

/// A listening socket. Dropping it removes the file.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl AdminSocket {
    /// Makes the socket at `path`, whose directory must exist. Needs a runtime.
    ///
    /// # Errors
    /// [`StatusError::InUse`], [`StatusError::NoSocket`], [`StatusError::System`].
    pub fn bind(path: &Path) -> Result<Self, StatusError> {
        remove_stale(path)?;
        let (listener, inode) = listen(path).map_err(|source| StatusError::System {
            step: "listen on",
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            inode,
        })
    }

    /// Looks at what stands at `path` and leaves it there. Needs a runtime.
    ///
    /// # Errors
    /// [`StatusError::NoSocket`], [`StatusError::System`].
    pub fn look(path: &Path) -> Result<Found, StatusError> {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(failed("look at", path)(error)),
            Ok(file) if !file.file_type().is_socket() => {
                return Err(StatusError::NoSocket {
                    path: path.to_owned(),
                });
            }
            Ok(_) => {}
        }
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(stream) => Ok(Found::Served(process_of(stream).unwrap_or(None))),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(Found::Stale),
            Err(error) => Err(failed("connect to", path)(error)),
        }
    }

    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        // A recorder that was started meanwhile may have its own there.
        let is_ours = fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "the socket file stays");
        }
    }
}

/// What stands at a socket's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A socket that nobody serves: a dead recorder left it.
    Stale,
    /// A socket that somebody serves, with the process id where the system tells it.
    Served(Option<i32>),
}

/// Removes what a dead recorder left; a connection tells dead from alive.
fn remove_stale(path: &Path) -> Result<(), StatusError> {
    match AdminSocket::look(path)? {
        Found::Nothing => Ok(()),
        Found::Stale => fs::remove_file(path).map_err(failed("remove the stale socket", path)),
        Found::Served(_) => Err(StatusError::InUse {
            path: path.to_owned(),
        }),
    }
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StatusError {
    let path = path.to_owned();
    move |source| StatusError::System { step, path, source }
}

fn process_of(stream: std::os::unix::net::UnixStream) -> io::Result<Option<i32>> {
    stream.set_nonblocking(true)?;
    let process = UnixStream::from_std(stream)?.peer_cred()?.pid();
    // A process of another pid namespace has no number here.
    Ok(process.filter(|process| *process > 0))
}

fn listen(path: &Path) -> io::Result<(UnixListener, u64)> {
    let socket: OwnedFd = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    // Linux gives the file the mode of the socket, so there is no moment in which others may open it.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    let inode = fs::symlink_metadata(path)?.ino();
    let listener = UnixListener::from_std(socket.into())?;
    Ok((listener, inode))
}
