//! The socket: TCP or Unix.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};

use super::limits;
use crate::cli::FrontendArgs;

/// A bound socket.
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// A connection.
pub enum Connection {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// Why the server cannot listen; the text names address or path and what helps.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BindError(String);

/// Binds `--uds`, or `--host` and `--port`.
///
/// # Errors
/// The port is in use, not allowed, or the host is not one of this machine's.
pub async fn bind(args: &FrontendArgs) -> Result<Listener, BindError> {
    match &args.uds {
        Some(path) => bind_unix(path.clone()),
        None => bind_tcp(args.host.as_deref(), args.port).await,
    }
}

impl Listener {
    /// What a client on this machine types.
    pub fn url(&self) -> String {
        match self {
            Listener::Tcp(l) => match l.local_addr() {
                Ok(a) if a.ip().is_unspecified() => format!("http://localhost:{}", a.port()),
                Ok(a) => format!("http://{a}"),
                Err(_) => "http://localhost".into(),
            },
            Listener::Unix(_, path) => format!("unix:{}", path.display()),
        }
    }

    pub(super) async fn accept(&self) -> io::Result<Connection> {
        match self {
            Listener::Tcp(l) => {
                let (stream, peer) = l.accept().await?;
                // Events are small and must leave at once.
                stream.set_nodelay(true)?;
                Ok(Connection::Tcp(stream, peer))
            }
            Listener::Unix(l, _) => Ok(Connection::Unix(l.accept().await?.0)),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

async fn bind_tcp(host: Option<&str>, port: u16) -> Result<Listener, BindError> {
    // All interfaces: IPv6 takes IPv4 along where the kernel has it.
    let hosts: &[&str] = match &host {
        Some(h) => std::slice::from_ref(h),
        None => &["::", "0.0.0.0"],
    };
    let mut last = None;
    for host in hosts {
        match listen_on(host, port).await {
            Ok(listener) => return Ok(Listener::Tcp(listener)),
            Err(e) => {
                let in_use = e.kind() == io::ErrorKind::AddrInUse;
                last = Some(bind_error(host, port, &e));
                if in_use {
                    break;
                }
            }
        }
    }
    Err(last.unwrap_or_else(|| BindError(format!("port {port}: no address to listen on"))))
}

async fn listen_on(host: &str, port: u16) -> io::Result<TcpListener> {
    let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, "the name has no address");
    for address in tokio::net::lookup_host((host, port)).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        match socket.bind(address).and_then(|()| socket.listen(limits::LISTEN_BACKLOG)) {
            Ok(listener) => return Ok(listener),
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn bind_error(host: &str, port: u16, e: &io::Error) -> BindError {
    let help = match e.kind() {
        io::ErrorKind::AddrInUse => {
            "it is in use by another process; choose another with --port, or 0 for any free one"
        }
        io::ErrorKind::PermissionDenied => "ports below 1024 need rights; choose another with --port",
        _ => "give an address of this machine with --host",
    };
    BindError(format!("cannot listen on {host} port {port}: {e}; {help}"))
}

fn bind_unix(path: PathBuf) -> Result<Listener, BindError> {
    // A socket that nobody answers on is left over from a process that was killed.
    if std::os::unix::net::UnixStream::connect(&path)
        .is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
    {
        let _ = std::fs::remove_file(&path);
    }
    match UnixListener::bind(&path) {
        Ok(listener) => Ok(Listener::Unix(listener, path)),
        Err(e) => {
            let help = match e.kind() {
                io::ErrorKind::AddrInUse => "another process listens there; choose another path with --uds",
                _ => "the directory must exist and be writable",
            };
            Err(BindError(format!("cannot listen on {}: {e}; {help}", path.display())))
        }
    }
}
