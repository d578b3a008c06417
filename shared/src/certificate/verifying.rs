//! The cryptography with which certificates are verified, and the meaning of failures.

use std::sync::Arc;

use rustls::CertificateError;
use rustls::crypto::CryptoProvider;

/// The cryptography of all programs here.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Which side of a connection a certificate is used on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It dials.
    Client,
    /// It is dialled.
    Server,
}

/// A failed verification in words that follow "certificate …:" or "TLS handshake failed from …:".
pub fn describe(error: &rustls::Error, role: Role) -> String {
    use CertificateError as E;
    let rustls::Error::InvalidCertificate(cause) = error else {
        return error.to_string();
    };
    match cause {
        E::UnknownIssuer => "certificate is from an unknown issuer (no chain to the mesh CA)".into(),
        E::Expired | E::ExpiredContext { .. } => "certificate has expired".into(),
        E::NotValidYet | E::NotValidYetContext { .. } => {
            "certificate is not valid yet (is a clock wrong?)".into()
        }
        E::Revoked => "certificate is revoked".into(),
        E::UnknownRevocationStatus => {
            "certificate's issuer is covered by no revocation list (proxy.crl_path needs one for each CA)"
                .into()
        }
        E::ExpiredRevocationList | E::ExpiredRevocationListContext { .. } => {
            "the revocation list has expired; publish a new one".into()
        }
        E::BadSignature => "certificate has a bad signature".into(),
        E::BadEncoding => "certificate cannot be read".into(),
        E::NotValidForName | E::NotValidForNameContext { .. } => {
            "certificate is not for the name that was dialled".into()
        }
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => match role {
            Role::Client => "certificate is not for TLS clients (extended key usage clientAuth)".into(),
            Role::Server => "certificate is not for TLS servers (extended key usage serverAuth)".into(),
        },
        E::UnsupportedSignatureAlgorithmContext { .. } | E::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "certificate is signed in a way that is not accepted (it takes SHA-256 or better, with EC P-256 or P-384, Ed25519, \
             or RSA of 2048 bits)"
                .into()
        }
        E::Other(other) => {
            let cause = other.0.to_string();
            match in_words(&cause) {
                Some(words) => words.into(),
                None => format!("certificate refused: {cause}"),
            }
        }
        other => format!("certificate refused: {other:?}"),
    }
}

/// What webpki's errors that rustls passes on as they are mean.
fn in_words(error: &str) -> Option<&'static str> {
    Some(match error {
        "CaUsedAsEndEntity" => "certificate is that of a CA, with which no peer can come",
        "EndEntityUsedAsCa" => "certificate was signed by one that is not a CA's",
        "NameConstraintViolation" => "certificate names what its CA may not issue (name constraints)",
        "PathLenConstraintViolated" => {
            "certificate has more CAs above it than one of them allows (path length)"
        }
        "MaximumPathDepthExceeded" => "certificate has too many CAs above it",
        "MaximumSignatureChecksExceeded"
        | "MaximumPathBuildCallsExceeded"
        | "MaximumNameConstraintComparisonsExceeded" => "certificate's chain takes too much work to verify",
        "UnsupportedCriticalExtension" => {
            "certificate has an extension that must be understood and is not (critical)"
        }
        "UnsupportedCertVersion" => "certificate is not X.509 version 3",
        "ExtensionValueInvalid" => "certificate has an extension twice, or one that cannot be read",
        _ => return None,
    })
}
