//! What an error of a handshake is counted as.

use std::io;

use rustls::CertificateError;

use super::verify::WrongPeer;
use crate::metrics::HandshakeFailure;

/// What an error of a handshake counts as.
pub fn of(error: &io::Error) -> HandshakeFailure {
    match error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) {
        Some(cause) => of_tls(cause),
        None => match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => HandshakeFailure::Closed,
            io::ErrorKind::TimedOut => HandshakeFailure::Timeout,
            _ => HandshakeFailure::Other,
        },
    }
}

/// What an error of TLS counts as.
pub fn of_tls(error: &rustls::Error) -> HandshakeFailure {
    use CertificateError as C;
    use rustls::Error as E;
    match error {
        E::NoCertificatesPresented => HandshakeFailure::NoCertificate,
        E::InvalidMessage(_) | E::InappropriateMessage { .. } | E::InappropriateHandshakeMessage { .. } => {
            HandshakeFailure::NotTls
        }
        E::PeerIncompatible(_) | E::NoApplicationProtocol => HandshakeFailure::Incompatible,
        E::AlertReceived(_) => HandshakeFailure::RefusedByPeer,
        E::InvalidCertificate(cause) => match cause {
            C::UnknownIssuer => HandshakeFailure::UnknownIssuer,
            C::Expired | C::ExpiredContext { .. } | C::NotValidYet | C::NotValidYetContext { .. } => {
                HandshakeFailure::OutsideValidity
            }
            C::Revoked => HandshakeFailure::Revoked,
            C::UnknownRevocationStatus
            | C::ExpiredRevocationList
            | C::ExpiredRevocationListContext { .. } => HandshakeFailure::RevocationList,
            C::NotValidForName | C::NotValidForNameContext { .. } => HandshakeFailure::WrongName,
            C::Other(other) if other.0.is::<WrongPeer>() => HandshakeFailure::WrongName,
            _ => HandshakeFailure::BadCertificate,
        },
        _ => HandshakeFailure::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_handshake_has_one_reason() {
        let tls = |error: rustls::Error| of(&io::Error::new(io::ErrorKind::InvalidData, error));
        assert_eq!(tls(rustls::Error::NoCertificatesPresented), HandshakeFailure::NoCertificate);
        assert_eq!(tls(CertificateError::Revoked.into()), HandshakeFailure::Revoked);
        assert_eq!(tls(CertificateError::BadSignature.into()), HandshakeFailure::BadCertificate);
        let closed = io::Error::from(io::ErrorKind::UnexpectedEof);
        assert_eq!(of(&closed), HandshakeFailure::Closed);
    }
}
