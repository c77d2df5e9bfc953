//! `polity metrics`.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tiny_http::{Header, Method, Request, Response, Server};

use crate::cli::Metrics;
use crate::error::{Error, Result};
use crate::live::need_root;
use crate::{metrics, out};

/// Prints the metrics, or answers whoever asks for them.
///
/// # Errors
/// Not root, or an address that can't be listened on.
pub fn run(args: &Metrics) -> Result<()> {
    match (args.listen, &args.textfile) {
        (None, None) => out::println(metrics::text()?.trim_end()),
        (None, Some(file)) => write(file)?,
        (Some(address), _) => {
            let server = bind(address)?;
            out::eprintln(&format!("http://{}/metrics", server.server_addr()));
            answer(&server);
        }
    }
    Ok(())
}

/// Puts a file with the metrics in the place of the one before, at once.
fn write(file: &Path) -> Result<()> {
    let text = metrics::text()?;
    let failed = |e| Error::failed(format!("can't write {}: {e}", file.display()));
    let name = file.file_name().ok_or_else(|| Error::config("the file has no name"))?;
    // Not `.prom`: the collector would read it.
    let new = file.with_file_name(format!(".{}.new", name.display()));
    // What a killed one left; never through a link that somebody else put there.
    let _ = fs::remove_file(&new);
    let write = || -> io::Result<()> {
        // The collector is not root.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().and_then(|()| fs::rename(&new, file)).map_err(|e| {
        let _ = fs::remove_file(&new);
        failed(e).into()
    })
}

/// Listens for those who ask for the metrics.
///
/// # Errors
/// Not root, or an address that can't be listened on.
pub fn bind(address: SocketAddr) -> Result<Server> {
    need_root("read the metrics of all policies")?;
    let server = Server::http(address).map_err(|e| {
        Error::failed(format!("can't listen on {address}: {e}"))
            .hint("another port: --listen 127.0.0.1:PORT")
    })?;
    if !address.ip().is_loopback() {
        tracing::warn!("{address} can be reached from other machines, and there is no password");
    }
    Ok(server)
}

/// Answers `GET /metrics`, one request at a time: a scrape is a few map look-ups.
pub fn answer(server: &Server) {
    let mut scraper = metrics::Scraper::default();
    for request in server.incoming_requests() {
        let path = request.url().split('?').next().unwrap_or_default();
        let answer = match (request.method(), path) {
            (Method::Get, "/metrics") => match scraper.text() {
                Ok(text) => (200, text, metrics::MEDIA_TYPE),
                Err(e) => (500, format!("{e:#}\n"), "text/plain"),
            },
            (Method::Get, _) => (404, "there is /metrics\n".to_owned(), "text/plain"),
            _ => (405, "only GET\n".to_owned(), "text/plain"),
        };
        let mut response = Response::from_string(answer.1).with_status_code(answer.0);
        if let Ok(header) = Header::from_bytes("Content-Type", answer.2) {
            response.add_header(header);
        }
        if let Err(e) = send(request, response) {
            tracing::debug!("the one who asked went away: {e}");
        }
    }
}

/// Sends an answer at once: tiny_http would in pieces, each of which wakes the one who asked.
fn send(request: Request, response: Response<impl Read>) -> io::Result<()> {
    let mut bytes = Vec::new();
    let (version, without_body) =
        (request.http_version().clone(), *request.method() == Method::Head);
    response.raw_print(&mut bytes, version, request.headers(), without_body, None)?;
    let mut writer = request.into_writer();
    writer.write_all(&bytes)?;
    writer.flush()
}
