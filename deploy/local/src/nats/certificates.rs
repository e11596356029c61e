//! The certificate of the NATS server of this machine, and the authority that has signed it.

use std::path::{Path, PathBuf};

use agentbox_testing::private_file;
use agentbox_testing::tool::{Tool, ToolError, find};

/// The extensions of both certificates. A certificate of an authority is not valid as a server's.
const OPENSSL: &str = "\
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
[server]
basicConstraints = critical, CA:FALSE
extendedKeyUsage = serverAuth
subjectAltName = IP:127.0.0.1
";

/// The certificate cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("encrypted connections to NATS need the program openssl; install it")]
    NotInstalled,
    #[error("cannot store the certificates of NATS: {0}")]
    Store(#[from] std::io::Error),
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// The files of the server.
pub(crate) struct Certificates {
    pub(crate) authority: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Certificates {
    /// Makes new ones in `directory`, which others must not read.
    pub(crate) async fn make(directory: &Path) -> Result<Self, CertificateError> {
        if find("openssl").is_none() {
            return Err(CertificateError::NotInstalled);
        }
        std::fs::create_dir_all(directory)?;
        let at = |name: &str| directory.join(name);
        let configuration = at("openssl.cnf");
        private_file::write(&configuration, OPENSSL.as_bytes())?;
        let new = |kind: &str| {
            Tool::new("openssl")
                .args(["req", "-x509", "-nodes", "-days", "3650", "-newkey", "ec"])
                .args(["-pkeyopt", "ec_paramgen_curve:prime256v1"])
                .args(["-subj", &format!("/CN=agentbox-nats-{kind}")])
                .args(["-extensions", kind])
                .arg_pair("-config", &configuration)
                .arg_pair("-keyout", at(&format!("{kind}.key")))
                .arg_pair("-out", at(&format!("{kind}.pem")))
        };
        new("authority").run().await?;
        new("server")
            .arg_pair("-CA", at("authority.pem"))
            .arg_pair("-CAkey", at("authority.key"))
            .run()
            .await?;
        // It signs nothing else: the next start makes another one.
        std::fs::remove_file(at("authority.key"))?;
        Ok(Self {
            authority: at("authority.pem"),
            certificate: at("server.pem"),
            key: at("server.key"),
        })
    }
}
